# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Pyramid of token maps from a backbone's feature maps, with the positions of the tokens.

Letters in shape comments: B images, S tokens of all levels, d model width, L levels. Coordinates are x, y in [0, 1] of
the valid image.
"""

from typing import NamedTuple

import torch
from torch import nn

from .configuration_sap_dino_detr import SapDinoDetrConfig
from .initialization import initialized
from .positions import valid_counts, valid_tokens
from .salient_points import SapDetrQueryContent

NORM_GROUPS = 32


class TokenPyramid(NamedTuple):
    """The tokens of all levels, level by level and row by row, and where they lie.

    Attributes:
        shapes: height and width of each level, as plain numbers.
        sizes: (L, 2) float32, width and height of each level.
        starts: (L,) int64, the first token of each level.
        ratios: (B or 1, L, 2) share of valid columns and rows of each level.
        valid: (B, S) bool, `None` when all tokens are.
        corners, cells: (B or 1, S, 2) upper left corner and size of each token's cell.
        levels: (S,) int64, the level of each token.
    """

    shapes: list[tuple[int, int]]
    sizes: torch.Tensor
    starts: torch.Tensor
    ratios: torch.Tensor
    valid: torch.Tensor | None
    corners: torch.Tensor
    cells: torch.Tensor
    levels: torch.Tensor


def token_pyramid(maps: list[torch.Tensor], masks: list[torch.Tensor] | None) -> TokenPyramid:
    """Where the tokens of maps (B, d, h, w) lie; `masks` (B, 1, h, w) bool hold the valid ones, `None` for all."""
    example = maps[0].new_empty((), dtype=torch.float32)
    shapes = [(tokens.shape[-2], tokens.shape[-1]) for tokens in maps]
    # From numbers to a tensor of the device, without a transfer, and so that a traced graph follows the sizes.
    sizes = torch.stack([example.new_full((), n) for height, width in shapes for n in (width, height)]).view(-1, 2)
    if masks is None:
        counts = sizes[None]
    else:
        counts = torch.stack([valid_counts(mask) for mask in masks], dim=1).float()
    corners, cells, levels = [], [], []
    for level, (height, width) in enumerate(shapes):
        column, row = (torch.arange(n, device=example.device, dtype=torch.float32) for n in (width, height))
        place = torch.stack([column.expand(height, -1), row[:, None].expand(-1, width)], dim=-1)  # (h, w, 2)
        place = place.flatten(0, 1)
        cell = 1 / counts[:, level, None]  # (B or 1, 1, 2)
        corners.append(place * cell)
        cells.append(cell.expand_as(corners[-1]))
        levels.append(torch.full_like(place[:, 0], level, dtype=torch.long))
    areas = sizes.prod(-1)
    return TokenPyramid(
        shapes=shapes,
        sizes=sizes,
        starts=(areas.cumsum(0) - areas).long(),
        ratios=counts / sizes,
        valid=None if masks is None else torch.cat([mask.flatten(1) for mask in masks], dim=1),
        corners=torch.cat(corners, dim=1),
        cells=torch.cat(cells, dim=1),
        levels=torch.cat(levels),
    )


class SapDinoDetrPyramidProjection(nn.Module):
    """The backbone's feature maps, and further ones of half the size, as maps of tokens."""

    def __init__(self, config: SapDinoDetrConfig, channels: list[int]):
        super().__init__()
        d_model, further = config.d_model, config.num_feature_levels - len(channels)
        convolutions = [nn.Conv2d(width, d_model, kernel_size=1) for width in channels]
        for width in [channels[-1], *[d_model] * further][:further]:
            convolutions.append(nn.Conv2d(width, d_model, kernel_size=3, stride=2, padding=1))
        self.convolutions = nn.ModuleList(initialized(layer, "xavier_zero_bias") for layer in convolutions)
        self.norms = nn.ModuleList(nn.GroupNorm(NORM_GROUPS, d_model) for _ in convolutions)

    def forward(
        self, feature_maps: list[torch.Tensor], pixel_mask: torch.Tensor | None
    ) -> tuple[list[torch.Tensor], list[torch.Tensor] | None]:
        """(B, ·, h, w) of the backbone -> (B, d, h, w) of each level, and its valid tokens (B, 1, h, w) bool."""
        maps: list[torch.Tensor] = []
        masks: list[torch.Tensor] = []
        for level, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            is_further = level >= len(feature_maps)
            source = maps[-1] if level > len(feature_maps) else feature_maps[min(level, len(feature_maps) - 1)]
            if pixel_mask is None:
                maps.append(norm(convolution(source)))
                continue
            # Zeros outside, as a convolution sees at an image's border
            projected = convolution(source * masks[-1] if is_further else source)
            masks.append(valid_tokens(pixel_mask, projected.shape[-2:]))
            maps.append(SapDetrQueryContent.norm_valid(norm, projected, masks[-1]))
        return maps, masks or None
