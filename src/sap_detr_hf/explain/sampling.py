"""Record the attention of a query of SAP-DINO-DETR: sampling points of its heads on all levels, and attention map.

Letters in shape comments: D decoder layers, N queries, H heads, L levels, M sampling points of a head on a level.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from ..evaluation_mode import evaluation_mode
from ..model.modeling_sap_dino_detr import SapDinoDetrForObjectDetection
from ..model.token_pyramid import TokenPyramid
from .explanation import Explanation


@dataclass
class SamplingExplanation(Explanation):
    """How a query of SAP-DINO-DETR came to its box; `attention` is the sampling as a map, see [`attention_map`].

    Args:
        sampling_points: (H, L, M, 2) x, y of each head's points on each level, which may lie outside the image.
        sampling_weights: (H, L, M) their weights; the sum of each head is 1.
    """

    heads: ClassVar[str] = "sampling"
    looked_at_name: ClassVar[str] = "sampling points"
    sampling_points: np.ndarray
    sampling_weights: np.ndarray

    @property
    def looked_at(self) -> np.ndarray:
        """The sampling points of all heads and levels."""
        return self.sampling_points.reshape(-1, 2)


class SamplingObservation:
    """The side-directed sampling of a decoder layer, seen while the model runs inside [`watching`]."""

    explanation = SamplingExplanation

    def __init__(self, model: SapDinoDetrForObjectDetection, layer: int):
        self.model, self.layer = model, layer
        self.seen: tuple[torch.Tensor, torch.Tensor, TokenPyramid] | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See one run of the model; afterwards it is as it was."""

        def see(attention: Any, arguments: tuple, places: dict[str, torch.Tensor], _: Any) -> None:
            hidden_states, _, pyramid = arguments
            self.seen = (*attention.samples(hidden_states, pyramid, **places), pyramid)

        attention = self.model.model.decoder.layers[self.layer].cross_attn
        hook = attention.register_forward_hook(see, with_kwargs=True)
        try:
            with evaluation_mode(self.model):
                yield
        finally:
            hook.remove()

    def entered(self, outputs: Any, query: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Points (D, 2) and sides (D, 4) that each layer started from, in [0, 1].

        Raises:
            ValueError: the query has no token.
        """
        if outputs.query_mask is not None and not outputs.query_mask[0, query]:
            raise ValueError(f"Query {query} is unused: the image has fewer tokens than the model has queries.")
        return outputs.intermediate_reference_points[:, 0, query], outputs.intermediate_box_sides[:, 0, query]

    def cells(self, outputs: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Corners and sizes (N, 2) in [0, 1] and levels (N,) of the queries' cells: those of their tokens."""
        return outputs.query_corners[0], outputs.query_cells[0], outputs.query_levels[0]

    def maps(self, query: int, inputs: dict[str, torch.Tensor], size: tuple[int, int]) -> dict[str, np.ndarray | tuple]:
        """What the explanation shows of a query: see `SamplingExplanation`."""
        assert self.seen is not None
        locations, weights, pyramid = self.seen
        location, weight = locations[0, query], weights[0, query]  # (H, L, M, 2), (H, L, M)
        points = (location / pyramid.ratios[0, :, None]).cpu().numpy() * np.array(size, dtype=np.float32)
        return {
            "sampling_points": points,
            "sampling_weights": weight.cpu().numpy(),
            "attention": attention_map(location, weight, pyramid).cpu().numpy(),
            "map_size": size,
        }


def attention_map(locations: torch.Tensor, weights: torch.Tensor, pyramid: TokenPyramid) -> torch.Tensor:
    """Attention of each head as a map of the valid image, with the tokens of the finest level: (H, h, w).

    A weight goes to the four tokens that its location lies between, as their values are read; that of coarser tokens
    is spread over their area. What lies outside the image is lost, so that a head's sum may be below 1.

    Args:
        locations: (H, L, M, 2) x, y in [0, 1] of each level's map.
        weights: (H, L, M).
        pyramid: where the tokens lie; of its images, the first.
    """
    valid = (pyramid.ratios[0] * pyramid.sizes).round().long().tolist()  # (L, 2) columns and rows
    total = torch.zeros(len(weights), valid[0][1], valid[0][0], device=weights.device)
    for level, ((height, width), (columns, rows)) in enumerate(zip(pyramid.shapes, valid, strict=True)):
        with torch.enable_grad():  # how much each token's value counts is the gradient by it
            tokens = torch.zeros(len(weights), 1, height, width, device=weights.device, requires_grad=True)
            grid = 2 * locations[:, None, level].detach() - 1  # (H, 1, M, 2)
            read = nn.functional.grid_sample(tokens, grid, align_corners=False)
            (share,) = torch.autograd.grad((read[:, 0, 0] * weights[:, level].detach()).sum(), tokens)
        share = share[:, :, :rows, :columns]
        spread = nn.functional.interpolate(share, size=total.shape[1:], mode="bilinear", align_corners=False)
        lost = spread.sum((2, 3), keepdim=True).clamp(min=1e-12)
        total += (spread * share.sum((2, 3), keepdim=True) / lost)[:, 0]
    return total
