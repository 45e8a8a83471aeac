# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Which tokens of a feature map belong to the image, and sine embeddings of coordinates and of token positions."""

import math

import torch


def valid_tokens(pixel_mask: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """(B, height, width), 1 = image -> (B, 1, h, w) bool, by nearest interpolation.

    By index, as `interpolate` rounds, for what that becomes in an exported graph rounds otherwise where the valid image
    ends at a token's border.
    """
    rows, columns = (
        (torch.arange(tokens, device=pixel_mask.device, dtype=torch.float32) * (pixels / tokens)).long()
        for tokens, pixels in zip(size, pixel_mask.shape[-2:], strict=True)
    )
    return (pixel_mask != 0)[:, None, rows[:, None], columns]


def valid_counts(mask: torch.Tensor) -> torch.Tensor:
    """(B, 1, h, w) bool -> (B, 2), how many columns and rows have a valid token."""
    return torch.cat([mask.any(2).sum(-1), mask.any(3).sum(-1)], dim=-1)


def sine_embedding(positions: torch.Tensor, width: int, temperature: float) -> torch.Tensor:
    """Sine embedding of coordinates in float32: (..., n) -> (..., n * width), one block of `width` per coordinate."""
    exponent = torch.arange(width // 2, device=positions.device, dtype=torch.float32) * 2 / width
    wave_length = temperature**exponent  # (width / 2,)
    angle = (positions.float() * (2 * math.pi))[..., None] / wave_length  # (..., n, width / 2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-3)


def spatial_position_embedding(mask: torch.Tensor, width: int, temperature: float, offset: float = 0.0) -> torch.Tensor:
    """Sine embedding of tokens' places in the *valid* region: (B, 1, h, w) bool -> (B, h * w, width), y block first.

    A place is the count of valid rows (columns) up to the token, less `offset`, as a share of all.
    """
    y = mask[:, 0].cumsum(1, dtype=torch.float32)
    x = mask[:, 0].cumsum(2, dtype=torch.float32)
    y = (y - offset) / (y[:, -1:, :] + 1e-6)
    x = (x - offset) / (x[:, :, -1:] + 1e-6)
    return sine_embedding(torch.stack([y, x], dim=-1), width // 2, temperature).flatten(1, 2)
