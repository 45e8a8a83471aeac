# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Deformable attention on a pyramid of token maps, around tokens (encoder) and towards box sides (decoder).

Letters in shape comments: B images, N queries, S tokens of all levels, d model width, H heads, L levels, M sampling
points of a head on a level. Coordinates are x, y in [0, 1] of the valid image, sampling locations of the padded map.
"""

import math
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention
from transformers.utils import is_tracing

from .initialization import initialized
from .token_pyramid import TokenPyramid

MANY_QUERIES = 4096  # from which the CPU's sampling is faster in training too: half as fast for 300, 1.3 times for 6000
QUERIES_AT_ONCE = 1024  # of the CPU's sampling: what is computed of so many stays in the processor's cache


class SapDinoDetrSamplingOffsets(nn.Linear):
    """Offsets of all sampling points: at first a ring, head h in direction 2 pi h / H, point k at distance k + 1."""

    def __init__(self, d_model: int, heads: int, levels: int, points: int):
        self.layout = (heads, levels, points)
        super().__init__(d_model, heads * levels * points * 2)

    def reset_parameters(self) -> None:
        """Fill in the ring."""
        heads, levels, points = self.layout
        angle = torch.arange(heads, dtype=torch.float32) * (2 * math.pi / heads)
        direction = torch.stack([angle.cos(), angle.sin()], dim=-1)  # (H, 2)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        ring = direction[:, None, None] * torch.arange(1, points + 1)[:, None]  # (H, 1, M, 2)
        init.zeros_(self.weight)
        init.copy_(self.bias, ring.expand(heads, levels, points, 2).flatten())


class SapDinoDetrDeformableAttention(nn.Module):
    """Each head of a query takes a weighted sum of values at points of its own, on all levels (Deformable DETR).

    The base of both attentions, which differ in [`locations`].
    """

    def __init__(self, d_model: int, heads: int, levels: int, points: int):
        super().__init__()
        self.layout = (heads, levels, points)
        self.sampling_offsets = SapDinoDetrSamplingOffsets(d_model, heads, levels, points)
        self.attention_weights = initialized(nn.Linear(d_model, heads * levels * points), "zero")
        self.value_proj = initialized(nn.Linear(d_model, d_model), "xavier_zero_bias")
        self.output_proj = initialized(nn.Linear(d_model, d_model), "xavier_zero_bias")
        self.sampling = MultiScaleDeformableAttention()  # a kernel of the Hub takes its place where one is used

    def locations(self, offsets: torch.Tensor, pyramid: TokenPyramid, **places: torch.Tensor) -> torch.Tensor:
        """Offsets (B, N, H, L, M, 2) float32 -> sampling locations, the same shape, in [0, 1] of each level's map."""
        raise NotImplementedError

    def samples(
        self, hidden_states: torch.Tensor, pyramid: TokenPyramid, **places: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Where queries (B, N, d) look: [`locations`] (B, N, H, L, M, 2) and their weights (B, N, H, L, M)."""
        offsets = self.sampling_offsets(hidden_states).float().unflatten(-1, (*self.layout, 2))
        weights = self.attention_weights(hidden_states).float().unflatten(-1, (self.layout[0], -1)).softmax(-1)
        return self.locations(offsets, pyramid, **places), weights.unflatten(-1, self.layout[1:])

    def forward(
        self, hidden_states: torch.Tensor, value_states: torch.Tensor, pyramid: TokenPyramid, **places: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attend from (B, N, d) to (B, S, d) -> (B, N, d) and the weights (B, N, H, L, M).

        Args:
            hidden_states: queries with their positions added.
            value_states: tokens of all levels.
            pyramid: where they lie.
            places: where the queries lie, for [`locations`].
        """
        value = self.value_proj(value_states)
        if pyramid.valid is not None:
            value = value.masked_fill(~pyramid.valid[..., None], 0.0)
        # All in float32, under autocast too: half precision would move a point by up to half a token.
        value = value.float().unflatten(-1, (self.layout[0], -1))  # (B, S, H, d / H)
        locations, weights = self.samples(hidden_states, pyramid, **places)
        output = self.sample(value, pyramid, locations, weights)
        return self.output_proj(output.to(hidden_states.dtype)), weights

    def sample(
        self, value: torch.Tensor, pyramid: TokenPyramid, locations: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """Sum values (B, S, H, d / H) at [`samples`] -> (B, N, d)."""
        faster = not torch.is_grad_enabled() or locations.shape[1] >= MANY_QUERIES
        if value.device.type == "cpu" and faster and not is_tracing(value):
            return sample_on_cpu(value, pyramid.shapes, locations, weights)
        return self.sample_anywhere(value, pyramid, locations, weights)

    def sample_anywhere(
        self, value: torch.Tensor, pyramid: TokenPyramid, locations: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """As [`sample`], by transformers: with `grid_sample`, which every device and graph has, or the Hub's kernel."""
        shapes = pyramid.sizes.flip(-1).long()
        return self.sampling(value, shapes, pyramid.shapes, pyramid.starts, locations, weights, 64)


class SapDinoDetrTokenAttention(SapDinoDetrDeformableAttention):
    """The encoder's: points around each token, in tokens of the level that is sampled."""

    def locations(self, offsets: torch.Tensor, pyramid: TokenPyramid) -> torch.Tensor:  # type: ignore[override]
        """Around the tokens themselves, all of which are queries."""
        center = pyramid.corners + pyramid.cells / 2  # (B or 1, S, 2)
        center = center[:, :, None] * pyramid.ratios[:, None]  # (B or 1, S, L, 2)
        return center[:, :, None, :, None] + offsets / pyramid.sizes[:, None]


class SapDinoDetrSideDirectedSampling(SapDinoDetrDeformableAttention):
    """The decoder's: points between the salient point and the sides of its box, and beyond.

    SAP-DETR's side-directed center, point + offset * chosen side, for each head, level and point. For a point in the
    middle of its box it is DINO's sampling.
    """

    def locations(  # type: ignore[override]
        self, offsets: torch.Tensor, pyramid: TokenPyramid, points: torch.Tensor, sides: torch.Tensor
    ) -> torch.Tensor:
        """From `points` (B, N, 2) towards `sides` (B, N, 4) left, top, right, bottom."""
        offsets = offsets / self.layout[2]
        left_top, right_bottom = sides[:, :, None, None, None].split(2, dim=-1)  # (B, N, 1, 1, 1, 2)
        seen = points[:, :, None, None, None] + offsets * torch.where(offsets > 0, right_bottom, left_top)
        return seen * pyramid.ratios[:, None, None, :, None]


def sample_on_cpu(
    value: torch.Tensor, shapes: list[tuple[int, int]], locations: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """`MultiScaleDeformableAttention` on a CPU, in inference 2 to 4 times as fast as by `grid_sample`.

    In training it is 1.3 times as fast for the encoder of large images, and takes less memory. A location's four
    tokens are rows of one table, each head's part of a token a row, and `embedding_bag` adds up the rows of all
    locations of a query's head. Rows of zeros around each level stand for what lies outside.

    Args:
        value: (B, S, H, d / H) float32.
        shapes: height and width of each level.
        locations: (B, N, H, L, M, 2) x, y in [0, 1] of each level's map.
        weights: (B, N, H, L, M).

    Returns:
        (B, N, d).
    """
    (batch, _, heads, width), queries = value.shape, locations.shape[1]
    maps, first, rows = [], [], 0
    for (h, w), tokens in zip(shapes, value.flatten(2).split([h * w for h, w in shapes], dim=1), strict=True):
        # One column before each row serves the row above as the one behind it; a point behind all needs 3 more rows.
        maps.append(nn.functional.pad(tokens.unflatten(1, (h, w)), (0, 0, 1, 0, 1, 3)).flatten(1, 2))
        first.append(rows + w + 2)
        rows += (h + 4) * (w + 1)
    table = torch.cat(maps, dim=1).view(batch * rows * heads, width)
    size = torch.tensor([(w, h) for h, w in shapes], dtype=torch.float32)[:, None]  # (L, 1, 2)
    line = torch.tensor([w + 1 for _, w in shapes], dtype=torch.int32)[:, None] * heads  # (L, 1)
    head = torch.arange(heads, dtype=torch.int32)[:, None, None]  # (H, 1, 1)
    origin = torch.tensor(first, dtype=torch.int32)[:, None] * heads + head  # (H, L, 1)
    outputs = []
    for image in range(batch):
        for place, weight in zip(
            locations[image].split(QUERIES_AT_ONCE), weights[image].split(QUERIES_AT_ONCE), strict=True
        ):
            place = (place * size - 0.5).clamp_(min=-1).minimum(size)  # (n, H, L, M, 2) in tokens; outside: zeros
            upper_left = place.floor()
            x, y = (place - upper_left).unbind(-1)
            column, row = upper_left.int().clamp_(min=-1).unbind(-1)  # a row of the table where it is not a number too
            token = row * line + column * heads + (origin + image * rows * heads)
            lower = y * weight
            upper = weight - lower
            corners = torch.stack([token, token + heads, token + line, token + line + heads], dim=-1)
            shares = torch.stack([upper - upper * x, upper * x, lower - lower * x, lower * x], dim=-1)
            rows_of_heads, shares = (values.flatten(2).flatten(0, 1) for values in (corners, shares))  # (n * H, 4 L M)
            outputs.append(nn.functional.embedding_bag(rows_of_heads, table, mode="sum", per_sample_weights=shares))
    return torch.cat(outputs).view(batch, queries, heads * width)
