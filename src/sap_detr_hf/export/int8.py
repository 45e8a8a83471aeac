"""Post-training quantization to 8 bits, with the ranges of all values calibrated on pictures."""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.loss.loss_for_object_detection import box_iou

from .comparison import ExportError
from .exported import open_session
from .formats import save_openvino
from .packages import require_nncf, require_openvino

# One picture each: `pixel_values` (1, 3, height, width), and `pixel_mask` (1, height, width) where it is padded.
Pictures = Sequence[dict[str, torch.Tensor]]

COMPARED_PICTURES = 16
BEST, AMONG = 10, 100  # torch's best detections of a picture, looked for among the int8 model's best
LEAST_AGREEMENT = 0.7


def quantize_openvino(path: Path, pictures: Pictures, int8_path: Path) -> None:
    """Quantize an exported OpenVINO model by NNCF; its metadata stays.

    Raises:
        ImportError: see [`require_nncf`].
    """
    nncf = require_nncf()
    nncf.set_log_level(logging.ERROR)
    model = require_openvino().Core().read_model(path)
    quantized = nncf.quantize(
        model,
        nncf.Dataset(pictures, graph_inputs),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(pictures),
    )
    save_openvino(quantized, int8_path)


def quantize_onnx(path: Path, pictures: Pictures, int8_path: Path) -> None:
    """Quantize an exported ONNX file by onnxruntime; its metadata stays.

    Raises:
        ImportError: see [`open_session`].
    """
    open_session(path)
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest: Iterator[dict[str, Any]] = map(graph_inputs, pictures)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.rest, None)

    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it advises a preprocessing that changes nothing here, through the root logger
    try:
        quantize_static(
            path,
            int8_path,
            Reader(),
            op_types_to_quantize=["Conv", "MatMul"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    finally:
        logger.setLevel(level)


QUANTIZERS: dict[str, Callable[[Path, Pictures, Path], None]] = {".onnx": quantize_onnx, ".xml": quantize_openvino}


def graph_inputs(picture: dict[str, torch.Tensor]) -> dict[str, Any]:
    """A picture as the arrays that the graph takes."""
    pixel_values = picture["pixel_values"]
    pixel_mask = picture.get("pixel_mask", torch.ones_like(pixel_values[:, 0]))
    return {"pixel_values": pixel_values.numpy(), "pixel_mask": pixel_mask.to(torch.int64).numpy()}


@torch.no_grad()
def agreement(model: nn.Module, exported: nn.Module, image_processor: Any, pictures: Pictures) -> float:
    """Share of torch's best detections that the exported model has too: the same class, an IoU of at least 0.5."""
    agreeing, total = 0, 0
    for index in range(0, len(pictures), -(-len(pictures) // COMPARED_PICTURES)):
        picture = pictures[index]
        expected, found = (
            image_processor.post_process_object_detection(one(**picture), threshold=0.0, top_k=count)[0]
            for one, count in ((model, BEST), (exported, AMONG))
        )
        overlap = box_iou(expected["boxes"], found["boxes"])[0]  # (BEST, AMONG)
        same = (overlap >= 0.5) & (expected["labels"][:, None] == found["labels"])
        agreeing, total = agreeing + int(same.any(1).sum()), total + len(same)
    return agreeing / total


def require_agreement(share: float) -> None:
    """Raises ExportError where the int8 model finds too little of what torch finds."""
    if not share >= LEAST_AGREEMENT:
        raise ExportError(
            f"in int8 the model has {share:.0%} of torch's best detections on your pictures, less than "
            f"{LEAST_AGREEMENT:.0%}: nothing was written; calibrate on more pictures like those of the training, or "
            "export without --int8"
        )
