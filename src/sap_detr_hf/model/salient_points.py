# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Salient points: each query's fixed reference point, the box around a point, and the content sampled at the points."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import initialization as init

from .configuration_sap_detr import SapDetrConfig
from .initialization import initialized

LOGIT_EPS = 1e-3  # the released code's clamp; it moves a point on the image's edge to 0.000999
CONTENT_NORM_GROUPS = 32


def logit(probability: torch.Tensor) -> torch.Tensor:
    """Inverse sigmoid with the released code's clamp at 1e-3, on both the probability and its complement."""
    probability = probability.clamp(0, 1)
    return torch.log(probability.clamp(min=LOGIT_EPS) / (1 - probability).clamp(min=LOGIT_EPS))


def grid_logits(rows: int, columns: int) -> torch.Tensor:
    """Upper left corners x, y of a grid's cells, row-major, as logits: (rows * columns, 2)."""
    y = torch.arange(rows, dtype=torch.float32) / rows
    x = torch.arange(columns, dtype=torch.float32) / columns
    return logit(torch.stack([x.repeat(rows), y.repeat_interleave(columns)], dim=-1))


def from_cells(place: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """x, y in cells of a grid of (rows, columns) -> x, y in [0, 1] of the image, (..., 2) both."""
    rows, columns = grid
    return torch.stack([place[..., 0] / columns, place[..., 1] / rows], dim=-1)


def in_cells(offset: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """The inverse of [`from_cells`]."""
    rows, columns = grid
    return torch.stack([offset[..., 0] * columns, offset[..., 1] * rows], dim=-1)


def start_points(corners: torch.Tensor, config: SapDetrConfig) -> torch.Tensor:
    """Where queries start in the cells with these upper left corners, (..., 2) both."""
    if config.point_start == "corner":
        return corners
    return corners + from_cells(torch.full_like(corners, 0.5), config.query_grid)


def cell_corners(points: torch.Tensor, config: SapDetrConfig) -> torch.Tensor:
    """Upper left corners of the cells in which queries start at these points, (..., 2) both."""
    if config.point_start == "corner":
        return points
    return points - from_cells(torch.full_like(points, 0.5), config.query_grid)


def box_corners(points: torch.Tensor, sides: torch.Tensor) -> torch.Tensor:
    """(..., 2) x, y and (..., 4) left, top, right, bottom -> (..., 4) x1, y1, x2, y2."""
    left_top, right_bottom = sides.split(2, dim=-1)
    return torch.cat([points - left_top, points + right_bottom], dim=-1)


def boxes_from_sides(points: torch.Tensor, sides: torch.Tensor) -> torch.Tensor:
    """(..., 2) x, y and (..., 4) left, top, right, bottom -> (..., 4) center x, center y, width, height."""
    left_top, right_bottom = sides.split(2, dim=-1)
    return torch.cat([points + (right_bottom - left_top) / 2, left_top + right_bottom], dim=-1)


class SapDetrReferencePoints(nn.Module):
    """The fixed grid of reference points, one per query: a frozen parameter of logits, as in the released code."""

    def __init__(self, config: SapDetrConfig):
        super().__init__()
        self.grid = tuple(config.query_grid)
        self.weight = nn.Parameter(grid_logits(*self.grid), requires_grad=False)

    def forward(self) -> torch.Tensor:
        """(N, 2) float32, x, y in [0, 1); 0 becomes 0.000999."""
        return self.weight.sigmoid()

    def reset_parameters(self) -> None:
        """Fill in the grid."""
        init.copy_(self.weight, grid_logits(*self.grid))

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        if self.weight.dtype != torch.float32:  # half precision would move points by up to a hundredth of a cell
            exact = grid_logits(*self.grid).to(self.weight.device)
            self.weight = nn.Parameter(exact, requires_grad=False)
        return self


class SapDetrQuerySides(nn.Embedding):
    """The learned box sides that each query starts from, as logits."""

    def forward(self) -> torch.Tensor:  # type: ignore[override]
        """(N, 4) float32, left, top, right, bottom in [0, 1]."""
        return self.weight.float().sigmoid()


class SapDetrQueryContent(nn.Module):
    """Initial query content: the encoder's output after three convolutions, sampled at the reference points."""

    def __init__(self, config: SapDetrConfig):
        super().__init__()
        d_model = config.d_model
        self.convolutions = nn.ModuleList(
            initialized(nn.Conv2d(d_model, d_model, 3, padding=1), "content_convolution") for _ in range(3)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(CONTENT_NORM_GROUPS, d_model) for _ in range(3))

    def forward(self, feature_map: torch.Tensor, points: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """(B, d, h, w), (B, N, 2) x, y in [0, 1] of the map -> (B, N, d); `valid` (B, 1, h, w) sets a region."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            if valid is None:
                feature_map = norm(convolution(feature_map)).relu()
            else:  # zeros outside, as a convolution sees at an image's border
                feature_map = self.norm_valid(norm, convolution(feature_map * valid), valid).relu()
        if valid is not None:
            feature_map = feature_map * valid
        # float32: in half precision a coordinate would be off by up to a cell
        sampled = nn.functional.grid_sample(
            feature_map.float(), 2 * points[:, None] - 1, mode="bilinear", padding_mode="zeros", align_corners=False
        )  # (B, d, 1, N)
        return sampled[:, :, 0].transpose(1, 2).to(feature_map.dtype)

    @staticmethod
    def norm_valid(norm: nn.GroupNorm, feature_map: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """GroupNorm whose statistics come from the valid positions only."""
        grouped = feature_map.float().unflatten(1, (norm.num_groups, -1))  # (B, groups, channels, h, w)
        weight = valid[:, None].float()
        count = weight.sum((2, 3, 4), keepdim=True) * grouped.shape[2]
        mean = (grouped * weight).sum((2, 3, 4), keepdim=True) / count
        variance = ((grouped - mean).square() * weight).sum((2, 3, 4), keepdim=True) / count
        normed = ((grouped - mean) * (variance + norm.eps).rsqrt()).flatten(1, 2).to(feature_map.dtype)
        return normed * norm.weight[:, None, None] + norm.bias[:, None, None]
