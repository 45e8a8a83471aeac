"""An exported file beside the torch model it was written from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from ..markdown_table import markdown_table
from .graph import OUTPUT_NAMES, padded_noise

CHECKED_BATCHES = (1, 3)
CHECKED_SIZES = ((192, 256), (131, 203))

# Of queries selected among tokens, which are compared as a set: where the scores of two tokens are equal but for
# rounding, they may change places, and a query's content goes with its place. So many must be equal of all queries,
# and of those with the best scores.
SELECTED_SHARE = 0.95
BEST_SHARE = 0.1


class ExportError(ValueError):
    """The exported model does not compute what the torch model computes."""


@dataclass(frozen=True)
class Difference:
    """Largest absolute differences between an exported model's and torch's outputs, for one batch.

    Attributes:
        batch_size, height, width: of the batch, which holds padding.
        largest: by output name; of a SAP-DINO-DETR over the nearest [`SELECTED_SHARE`] of each image's queries,
            and of the [`BEST_SHARE`] with the best scores.
    """

    batch_size: int
    height: int
    width: int
    largest: dict[str, float]


@torch.no_grad()
def compare_with_torch(
    model: Any,
    exported: nn.Module,
    batch_sizes: Sequence[int] = CHECKED_BATCHES,
    sizes: Sequence[tuple[int, int]] = CHECKED_SIZES,
) -> list[Difference]:
    """Run both on the same noise, all batch sizes in all sizes (height, width)."""
    model = model.eval()
    differences = []
    for height, width in sizes:
        for batch_size in batch_sizes:
            inputs = padded_noise(batch_size, height, width)
            expected, found = model(*inputs), exported(*inputs)
            share, parts = 1.0, [slice(None)]
            if model.config.selects_queries:
                found, share = in_order_of(expected, found), SELECTED_SHARE
                parts.append(slice(math.ceil(BEST_SHARE * expected.logits.shape[1])))
            best_first = expected.logits.amax(-1).argsort(1, descending=True)  # (B, N)
            largest = {}
            for name in OUTPUT_NAMES:
                of_queries = (getattr(found, name) - getattr(expected, name)).abs().amax(-1)  # (B, N)
                of_queries = of_queries.gather(1, best_first)
                quantiles = [of_queries[:, part].quantile(share, dim=1, interpolation="lower") for part in parts]
                largest[name] = torch.stack(quantiles).max().item()
            differences.append(Difference(batch_size, height, width, largest))
    return differences


def in_order_of(expected: Any, found: Any) -> SimpleNamespace:
    """The found outputs with each image's queries in the order that differs least from the expected ones."""
    theirs, ours = (torch.cat([getattr(outputs, name) for name in OUTPUT_NAMES], -1) for outputs in (expected, found))
    costs = torch.cdist(theirs, ours, p=float("inf")).nan_to_num(torch.finfo(torch.float32).max)  # (B, N, N)
    orders = [torch.from_numpy(linear_sum_assignment(cost.numpy())[1]) for cost in costs]
    return SimpleNamespace(
        **{
            name: torch.stack([each[order] for each, order in zip(getattr(found, name), orders, strict=True)])
            for name in OUTPUT_NAMES
        }
    )


def difference_table(differences: Sequence[Difference]) -> str:
    """The differences as a Markdown table."""
    rows = [
        [found.batch_size, f"{found.height} x {found.width}", *(f"{found.largest[name]:.1e}" for name in OUTPUT_NAMES)]
        for found in differences
    ]
    return markdown_table(["batch", "height x width", *OUTPUT_NAMES], rows)


def require_equal(differences: Sequence[Difference], tolerance: float) -> None:
    """Raises ExportError for a difference that exceeds the tolerance or is not a number."""
    for found in differences:
        for name, largest in found.largest.items():
            if not largest <= tolerance:  # also where it is not a number
                raise ExportError(
                    f"the exported model's {name} differs from torch's by {largest:.2g}, more than {tolerance:g}, for "
                    f"{found.batch_size} images of {found.height} x {found.width}: nothing was written"
                )
