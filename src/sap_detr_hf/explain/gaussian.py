"""Record what leads a query of SAP-DETR: the side-directed Gaussian of its heads, and their attention.

Letters in shape comments: D decoder layers, B images, N queries, H heads, h and w rows and columns of the feature map.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch

from ..evaluation_mode import evaluation_mode
from ..model.modeling_sap_detr import SapDetrForObjectDetection
from .explanation import Explanation


@dataclass
class GaussianExplanation(Explanation):
    """How a query of SAP-DETR came to its box.

    Args:
        gaussian: (H, h, w) the side-directed Gaussian's weights in [0, 1], by which attention is multiplied before it
            is normalized.
        gaussian_centers: (H, 2) x, y of each head's Gaussian, between the entered point and the sides it started from.
        gaussian_widths: (H, 2) its standard deviations along x and y.
    """

    heads: ClassVar[str] = "gaussian"
    looked_at_name: ClassVar[str] = "centers of the heads' Gaussians"
    gaussian: np.ndarray
    gaussian_centers: np.ndarray
    gaussian_widths: np.ndarray

    @property
    def looked_at(self) -> np.ndarray:
        """The Gaussians' centers."""
        return self.gaussian_centers


class GaussianObservation:
    """The side-directed Gaussian and the attention of a decoder layer, seen while the model runs inside [`watching`].

    Attributes:
        seen: one dict per decoder layer: its points and sides, the map's shape. That of `layer` has `gaussian` and
            `attention`, (B, H, N, h * w), too, and the Gaussians' `centers` and `widths`, (B, N, H, 2), in feature-map
            pixels.

    Raises:
        ValueError: the model has no side-directed Gaussian.
    """

    explanation = GaussianExplanation

    def __init__(self, model: SapDetrForObjectDetection, layer: int):
        if not model.config.side_directed_gaussian:
            raise ValueError(
                "The model has no side-directed Gaussian (`side_directed_gaussian` is off), which an explanation shows."
            )
        self.model, self.layer = model, layer
        self.seen: list[dict[str, Any]] = [{} for _ in model.model.decoder.layers]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See one run of the model, with eager attention, which alone has weights; afterwards it is as it was."""
        model, seen = self.model, self.seen
        decoder_layers = model.model.decoder.layers

        def see_gaussian(index: int, module: Any, arguments: tuple, bias: torch.Tensor) -> None:
            hidden_states, points, sides, extent, _, map_shape = arguments
            seen[index] |= {"points": points, "sides": sides, "map_shape": map_shape}
            if index == self.layer:
                centers, inverse_width = module.place(module.proj(hidden_states), points, sides, extent)
                widths = 2 / inverse_width.abs().clamp(min=1e-6)  # standard deviations: exp(-(d a)^2 / 8)
                seen[index] |= {"gaussian": bias, "centers": centers, "widths": widths}

        def see_attention(module: torch.nn.Module, arguments: tuple, output: tuple) -> None:
            seen[self.layer]["attention"] = output[1]

        implementation = model.config._attn_implementation
        hooks = [each.gaussian.register_forward_hook(partial(see_gaussian, i)) for i, each in enumerate(decoder_layers)]
        hooks.append(decoder_layers[self.layer].cross_attn.register_forward_hook(see_attention))
        model.set_attn_implementation({"": "eager"})  # the backbone keeps its own
        try:
            with evaluation_mode(model):
                yield
        finally:
            model.set_attn_implementation({"": implementation})
            for hook in hooks:
                hook.remove()

    def entered(self, outputs: Any, query: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Points (D, 2) and sides (D, 4) that each layer started from, in [0, 1]."""
        points, sides = (torch.stack([layer[name][0, query] for layer in self.seen]) for name in ("points", "sides"))
        return points, sides

    def cells(self, outputs: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Corners and sizes (N, 2) in [0, 1] and levels (N,) of the queries' cells: a grid."""
        rows, columns = self.model.model.query_points.grid
        corners = self.model.model.query_points()
        sizes = corners.new_tensor([1 / columns, 1 / rows]).expand_as(corners)
        return corners, sizes, torch.zeros(len(corners), dtype=torch.int64)

    def maps(self, query: int, inputs: dict[str, torch.Tensor], size: tuple[int, int]) -> dict[str, Any]:
        """The Gaussian and the attention of a query: see `GaussianExplanation`."""
        seen, map_size = self.seen[self.layer], map_size_of(inputs, size)
        rows, columns = seen["map_shape"]
        centers, widths = (seen[name][0, query].float().cpu() for name in ("centers", "widths"))  # (H, 2)
        heads = {name: seen[name][0, :, query].float().cpu() for name in ("gaussian", "attention")}  # (H, h * w)
        token_size = np.array(map_size, dtype=np.float32) / [columns, rows]
        return {
            "gaussian": heads["gaussian"].exp().view(-1, rows, columns).numpy(),
            "gaussian_centers": centers.numpy() * token_size,
            "gaussian_widths": widths.numpy() * token_size,
            "attention": heads["attention"].view(-1, rows, columns).numpy(),
            "map_size": map_size,
        }


def map_size_of(inputs: dict[str, torch.Tensor], size: tuple[int, int]) -> tuple[float, float]:
    """Width and height of the model's whole input, padding included, in pixels of an image of `size`."""
    height, width = inputs["pixel_values"].shape[-2:]
    mask = inputs.get("pixel_mask")
    valid_height = height if mask is None else int(mask[0].any(1).sum())
    valid_width = width if mask is None else int(mask[0].any(0).sum())
    return size[0] * width / valid_width, size[1] * height / valid_height
