"""A detector as one traced graph for any batch size, height and width: every format is written from it."""

import copy

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from transformers import PreTrainedModel

from .same_padding import replace_same_convolutions

INPUT_NAMES = ("pixel_values", "pixel_mask")
OUTPUT_NAMES = ("logits", "pred_boxes", "pred_points")
AXES = {
    "pixel_values": {0: "batch", 2: "height", 3: "width"},
    "pixel_mask": {0: "batch", 1: "height", 2: "width"},
}

# None of a batch size of 1 (torch.export would take it for a constant), equal sides, or multiples of a stride.
TRACED_BATCH, TRACED_SIZE = 2, (150, 200)


class DetectorGraph(nn.Module):
    """The model with tensors only, in and out."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Predictions of a batch.

        Args:
            pixel_values: (B, 3, height, width), normalised, padded at the right and bottom.
            pixel_mask: (B, height, width) int64, 1 = image, 0 = padding.

        Returns:
            `logits` (B, N, K), `pred_boxes` (B, N, 4) center x, center y, width, height and `pred_points` (B, N, 2)
            x, y; both in [0, 1] of the image.
        """
        outputs = self.model(pixel_values=pixel_values, pixel_mask=pixel_mask)
        return tuple(outputs[name] for name in OUTPUT_NAMES)


def traced_program(model: PreTrainedModel) -> ExportedProgram:
    """Trace a detector once, with [`AXES`] dynamic.

    Args:
        model: a detector of this package, on the CPU in float32; it stays as it is.

    Raises:
        ValueError: the model is not in float32.
    """
    if next(model.parameters()).dtype != torch.float32:
        raise ValueError("Only a float32 model can be exported: load it with `dtype=torch.float32`.")
    dynamic = {name: dict.fromkeys(axes, Dim.DYNAMIC) for name, axes in AXES.items()}
    graph = DetectorGraph(_for_tracing(model)).eval()
    with torch.no_grad():
        program = torch.export.export(
            graph, padded_noise(TRACED_BATCH, *TRACED_SIZE), dynamic_shapes=dynamic, strict=False
        )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names files of this machine
    return program


def padded_noise(batch_size: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """pixel_values (B, 3, height, width) and pixel_mask (B, height, width); every image has padding of its own."""
    pixel_values = torch.randn(batch_size, 3, height, width, generator=torch.Generator().manual_seed(0))
    pixel_mask = torch.zeros(batch_size, height, width, dtype=torch.int64)
    for index in range(batch_size):
        share = 0.9 - 0.3 * index / batch_size
        valid_height, valid_width = (height, int(width * share)) if index % 2 else (int(height * share), width)
        pixel_mask[index, :valid_height, :valid_width] = 1
    return pixel_values * pixel_mask[:, None], pixel_mask


def _for_tracing(model: PreTrainedModel) -> PreTrainedModel:
    """A copy whose graph is the same function, and quick to trace."""
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")  # a plain graph: SDPA pads values for its kernel
    replace_same_convolutions(model)
    for module in model.modules():
        if hasattr(module, "inplace"):  # in-place operations double the time of the decomposition
            module.inplace = False  # type: ignore[assignment]
    return model
