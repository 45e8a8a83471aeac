# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Query selection (two-stage DETR): the tokens with the best class scores become the queries of the decoder.

A query's point stays in the cell of the token it was selected at: point = corner + cell * place, with the place (its
position within the cell) in (0, 1). Letters in shape comments: B images, N queries, S tokens of all levels, P denoising
queries, d model width, L levels, K classes.
"""

from typing import NamedTuple

import torch
from torch import nn
from transformers.utils.generic import maybe_autocast

from .configuration_sap_dino_detr import SapDinoDetrConfig
from .denoising import DenoisingQueries
from .feed_forward import SapDetrMLP
from .initialization import initialized
from .salient_points import logit
from .token_pyramid import TokenPyramid

OUTSIDE = 2.0  # where queries without a token lie: in no box, and beyond all tokens


class StartQueries(NamedTuple):
    """Where the queries start.

    Attributes:
        corners, cells: (B, N, 2) upper left corner and size of their cells.
        places: (B, N, 2) of the points in their cells.
        sides: (B, N, 4).
        levels: (B, N) int64, of the tokens with these cells.
        valid: (B, N) bool, False for a query without a token; `None` when all have one.
    """

    corners: torch.Tensor
    cells: torch.Tensor
    places: torch.Tensor
    sides: torch.Tensor
    levels: torch.Tensor
    valid: torch.Tensor | None


class SapDinoDetrSelection(nn.Module):
    """The tokens with the best class score become queries: a token's cell is its query's, its box is the start."""

    def __init__(self, config: SapDinoDetrConfig):
        super().__init__()
        self.config = config
        d_model = config.d_model
        self.projection = initialized(nn.Linear(d_model, d_model), "xavier")
        self.layer_norm = nn.LayerNorm(d_model)
        self.class_head = initialized(nn.Linear(d_model, config.num_labels), "prior")
        self.objectness_head = initialized(nn.Linear(d_model, 1), "prior")
        self.side_head = SapDetrMLP([d_model] * 3 + [4], last_rule="zero")
        self.point_head = SapDetrMLP([d_model] * 3 + [2], last_rule="zero")

    @torch.no_grad()
    def best_tokens(self, tokens: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """(B, S, d) -> (B, N) int64, the best first; N is at most S."""
        with maybe_autocast(tokens.device.type, enabled=False):  # too many scores would be equal in half precision
            described = self.layer_norm(self.projection(tokens.to(self.projection.weight.dtype)))
            scores = self.class_head(described).amax(-1).float()
        if valid is not None:
            scores = scores.masked_fill(~valid, torch.finfo(scores.dtype).min)
        return scores.topk(torch.sym_min(self.config.num_queries, scores.shape[1]), dim=1).indices

    def forward(self, tokens: torch.Tensor, pyramid: TokenPyramid) -> tuple[StartQueries, torch.Tensor, torch.Tensor]:
        """Select among the encoder's tokens (B, S, d), of which only the selected ones carry gradient.

        Returns:
            The queries, and the class logits (B, N, K) and objectness logits (B, N, 1) of their tokens.
        """
        index = self.best_tokens(tokens, pyramid.valid)

        def at_index(values: torch.Tensor) -> torch.Tensor:
            values = values.expand(index.shape[0], -1, -1)
            return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))

        described = self.layer_norm(self.projection(at_index(tokens)))  # (B, N, d)
        levels = pyramid.levels[index]
        prior = self.config.prior_side * 2.0 ** levels[..., None].float()  # (B, N, 1)
        queries = StartQueries(
            corners=at_index(pyramid.corners),
            cells=at_index(pyramid.cells),
            places=self.point_head(described).float().sigmoid(),
            sides=(self.side_head(described).float() + logit(prior)).sigmoid(),
            levels=levels,
            valid=None,
        )
        if pyramid.valid is not None:
            queries = without_padding(queries, pyramid.valid.gather(1, index))
        return queries, self.class_head(described), self.objectness_head(described)


def without_padding(queries: StartQueries, valid: torch.Tensor) -> StartQueries:
    """Make queries all alike that were selected in the padding, for want of tokens; `valid` (B, N) are the others."""
    unused = ~valid[..., None]
    return queries._replace(
        corners=queries.corners.masked_fill(unused, OUTSIDE),
        cells=queries.cells.masked_fill(unused, 0.0),
        sides=queries.sides.masked_fill(unused, 0.0),
        levels=queries.levels.masked_fill(~valid, 0),
        valid=valid,
    )


def with_denoising(queries: StartQueries, denoising: DenoisingQueries | None, pyramid: TokenPyramid) -> StartQueries:
    """What enters the decoder: the selected queries without their gradient, and behind them those that denoise.

    The latter start in the centers of their cells, as if selected at a token of their object: of a level that is drawn
    from those whose cells are at most as wide or as high as the object.
    """
    queries = queries._replace(places=queries.places.detach(), sides=queries.sides.detach())
    if denoising is None:
        return queries
    boxes = denoising.target_corners.repeat(1, 2, 1)  # (B, P, 4) x1, y1, x2, y2 of positives and negatives
    sizes = 1 / (pyramid.sizes * pyramid.ratios).expand(len(boxes), -1, -1)  # (B, L, 2) of the levels' cells
    fits = (sizes[:, None] <= (boxes[..., 2:] - boxes[..., :2])[:, :, None]).any(-1)  # (B, P, L), True up to a level
    assert denoising.level_noise is not None
    levels = (denoising.level_noise * fits.sum(-1).clamp(min=1)).long()  # (B, P)
    cells = sizes.gather(1, levels[..., None].expand(-1, -1, 2))
    added = StartQueries(
        corners=denoising.points - cells / 2,
        cells=cells,
        places=torch.full_like(cells, 0.5),
        sides=denoising.sides,
        levels=levels,
        valid=None if queries.valid is None else torch.ones_like(levels, dtype=torch.bool),
    )
    both = zip(queries, added, strict=True)
    return StartQueries(*(None if ours is None else torch.cat([ours, theirs], dim=1) for ours, theirs in both))
