"""A model as one ONNX file for any batch size, height and width, compared with torch before it gets its name.

Reading order: `export_onnx` -> `onnx_metadata`, `compare_with_torch`. The file runs without this package, torch or
transformers: `examples/predict_onnx.py`.
"""

import copy
import json
import logging
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..files import whole_file
from ..markdown_table import markdown_table
from .same_padding import onnx_translations, replace_same_convolutions
from .session import open_session, require_onnx

INPUT_NAMES = ("pixel_values", "pixel_mask")
OUTPUT_NAMES = ("logits", "pred_boxes", "pred_points")

# None of a batch size of 1 (torch.export would take it for a constant), equal sides, or multiples of a stride.
TRACED_BATCH, TRACED_SIZE = 2, (150, 200)
CHECKED_BATCHES = (1, 3)
CHECKED_SIZES = ((192, 256), (224, 160), (131, 203))
TOLERANCE = 1e-3

PROCESSOR_VALUES = (
    "do_resize",
    "size",
    "resample",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
)


class ExportError(ValueError):
    """The exported model does not compute what the torch model computes."""


class OnnxGraph(nn.Module):
    """What is exported: the model with tensors only, in and out."""

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


@dataclass(frozen=True)
class Difference:
    """Largest absolute differences between onnxruntime's and torch's outputs, for one batch.

    Attributes:
        batch_size, height, width: of the batch, which holds padding.
        largest: by output name.
    """

    batch_size: int
    height: int
    width: int
    largest: dict[str, float]


def export_onnx(
    model: PreTrainedModel, image_processor: Any, path: str | Path, tolerance: float = TOLERANCE
) -> list[Difference]:
    """Write a model as one ONNX file with dynamic batch size, height and width, and compare it with torch.

    Args:
        model: a `SapDetrForObjectDetection` on the CPU in float32; it is in evaluation mode afterwards.
        image_processor: its values travel in the file, see [`onnx_metadata`].
        path: the file; it appears once the comparison has passed.
        tolerance: largest accepted difference of any output.

    Returns:
        The differences found, see [`compare_with_torch`].

    Raises:
        ExportError: a difference exceeds the tolerance, or is not a number.
        ImportError: see [`require_onnx`].
        ValueError: the model is not in float32.
    """
    require_onnx()
    if next(model.parameters()).dtype != torch.float32:
        raise ValueError("Only a float32 model can be exported: load it with `dtype=torch.float32`.")
    with whole_file(path) as aside:
        program = _traced(model)
        program.model.metadata_props.update(onnx_metadata(model.config, image_processor))
        program.save(aside, external_data=False)
        differences = compare_with_torch(model, aside)
        _require_equal(differences, tolerance)
    return differences


def onnx_metadata(config: Any, image_processor: Any) -> dict[str, str]:
    """What a user of the file must know beside it, as JSON texts by key.

    Keys: `model_type`; `id2label`, names by class index; `category_ids`, the data set's own id of each class index or
    null where the index is that id; `image_processor`, the processor's `PROCESSOR_VALUES`.
    """
    values = {name: getattr(image_processor, name) for name in PROCESSOR_VALUES}
    values.update(size=dict(values["size"]), resample=int(values["resample"]))
    contents = {
        "model_type": config.model_type,
        "id2label": {str(index): name for index, name in config.id2label.items()},
        "category_ids": config.category_ids,
        "image_processor": values,
    }
    return {key: json.dumps(content) for key, content in contents.items()}


def quantize_int8(path: str | Path, int8_path: str | Path) -> None:
    """Write a copy of an exported model whose linear layers compute with 8-bit weights and activations.

    Weights have one scale a channel and 7 bits of range, so that processors without VNNI do not saturate; activations
    get their scale at run time. Convolutions stay in float32: onnxruntime's `ConvInteger` is many times slower.
    Shape, inputs, outputs and metadata stay. `benchmarks/evaluate_onnx.py` measures what it costs.

    Raises:
        FileNotFoundError, ImportError, ValueError: see [`open_session`].
    """
    open_session(path)
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it advises a preprocessing that changes nothing here, through the root logger
    try:
        with whole_file(int8_path) as aside:
            quantize_dynamic(
                os.fspath(path),
                os.fspath(aside),
                op_types_to_quantize=["MatMul"],
                per_channel=True,
                reduce_range=True,
                weight_type=QuantType.QInt8,
            )
    finally:
        logger.setLevel(level)


@torch.no_grad()
def compare_with_torch(
    model: nn.Module,
    path: str | Path,
    batch_sizes: Sequence[int] = CHECKED_BATCHES,
    sizes: Sequence[tuple[int, int]] = CHECKED_SIZES,
) -> list[Difference]:
    """Run an ONNX file by onnxruntime and the model by torch on the same noise, all batch sizes in all sizes."""
    session = open_session(path)
    model = model.eval()
    differences = []
    for height, width in sizes:
        for batch_size in batch_sizes:
            pixel_values, pixel_mask = padded_noise(batch_size, height, width)
            expected = model(pixel_values=pixel_values, pixel_mask=pixel_mask)
            found = session.run(
                list(OUTPUT_NAMES), {"pixel_values": pixel_values.numpy(), "pixel_mask": pixel_mask.numpy()}
            )
            largest = {
                name: (torch.from_numpy(values) - expected[name]).abs().max().item()
                for name, values in zip(OUTPUT_NAMES, found, strict=True)
            }
            differences.append(Difference(batch_size, height, width, largest))
    return differences


def padded_noise(batch_size: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """pixel_values (B, 3, height, width) and pixel_mask (B, height, width); every image has padding of its own."""
    pixel_values = torch.randn(batch_size, 3, height, width, generator=torch.Generator().manual_seed(0))
    pixel_mask = torch.zeros(batch_size, height, width, dtype=torch.int64)
    for index in range(batch_size):
        share = 0.9 - 0.3 * index / batch_size
        valid_height, valid_width = (height, int(width * share)) if index % 2 else (int(height * share), width)
        pixel_mask[index, :valid_height, :valid_width] = 1
    return pixel_values * pixel_mask[:, None], pixel_mask


def difference_table(differences: Sequence[Difference]) -> str:
    """The differences as a Markdown table."""
    rows = [
        [found.batch_size, f"{found.height} x {found.width}", *(f"{found.largest[name]:.1e}" for name in OUTPUT_NAMES)]
        for found in differences
    ]
    return markdown_table(["batch", "height x width", *OUTPUT_NAMES], rows)


def _traced(model: PreTrainedModel) -> torch.onnx.ONNXProgram:
    graph = OnnxGraph(_for_tracing(model)).eval()
    dynamic = {
        "pixel_values": {0: "batch", 2: "height", 3: "width"},
        "pixel_mask": {0: "batch", 1: "height", 2: "width"},
    }
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*axis name: .* will not be used")  # both inputs share the axes
        program = torch.onnx.export(
            graph,
            padded_noise(TRACED_BATCH, *TRACED_SIZE),
            dynamo=True,
            verbose=False,
            input_names=INPUT_NAMES,
            output_names=OUTPUT_NAMES,
            dynamic_shapes=dynamic,
            custom_translation_table=onnx_translations(),
        )
    assert program is not None
    for node in program.model.graph.all_nodes():  # they name files of this machine
        node.metadata_props.clear()
    return program


def _for_tracing(model: PreTrainedModel) -> PreTrainedModel:
    """A copy whose graph is the same function, and quick to trace."""
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")  # a plain graph: SDPA pads values for its kernel
    replace_same_convolutions(model)
    for module in model.modules():
        if hasattr(module, "inplace"):  # in-place operations double the time of the decomposition
            module.inplace = False  # type: ignore[assignment]
    return model


def _require_equal(differences: Sequence[Difference], tolerance: float) -> None:
    for found in differences:
        for name, largest in found.largest.items():
            if not largest <= tolerance:  # also where it is not a number
                raise ExportError(
                    f"onnxruntime's {name} differs from torch's by {largest:.2g}, more than {tolerance:g}, for "
                    f"{found.batch_size} images of {found.height} x {found.width}: nothing was written"
                )
