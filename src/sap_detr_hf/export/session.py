"""An exported model in use from Python: an onnxruntime session, and a detector that evaluation takes for a model."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..model.image_processing_pil_sap_detr import SapDetrImageProcessorPil

if TYPE_CHECKING:
    import onnxruntime


def require_onnx() -> None:
    """Raises ImportError that says what to install where the packages for ONNX are absent."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"ONNX files need the package {error.name}: pip install sap-detr-hf[onnx].") from error


def open_session(path: str | Path, threads: int | None = None) -> "onnxruntime.InferenceSession":
    """A session on the CPU, with as many threads as torch has unless `threads` says otherwise.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: see [`require_onnx`].
        ValueError: it is no ONNX model.
    """
    require_onnx()
    import onnxruntime

    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: there is no such ONNX file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    # Threads that go on spinning after a run would slow whatever runs next: torch, in a comparison, to a third.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no other base class
        raise ValueError(f"{path} cannot be loaded as an ONNX model: {error}") from error


class OnnxDetector(nn.Module):
    """An exported file in a model's place, for [`evaluate_detections`].

    `config` holds `id2label` and `category_ids` as the file states them, `image_processor` is made of its values.

    Raises:
        FileNotFoundError, ValueError: see [`open_session`]; or the file was not written by `sap-detr export`.
    """

    def __init__(self, path: str | Path, threads: int | None = None):
        super().__init__()
        self.session = open_session(path, threads)
        metadata = self.session.get_modelmeta().custom_metadata_map
        if "image_processor" not in metadata:
            raise ValueError(f"{path} does not say how to prepare images: export it with `sap-detr export`")
        labels = json.loads(metadata["id2label"])
        self.config = SimpleNamespace(
            id2label={int(index): name for index, name in labels.items()},
            category_ids=json.loads(metadata["category_ids"]),
        )
        self.image_processor = SapDetrImageProcessorPil(**json.loads(metadata["image_processor"]))
        self.device_and_dtype = nn.Parameter(torch.zeros(()), requires_grad=False)  # evaluation asks a parameter

    def forward(self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None = None) -> Any:
        """`logits` (B, N, K), `pred_boxes` (B, N, 4) and `pred_points` (B, N, 2), as the model's."""
        if pixel_mask is None:
            pixel_mask = torch.ones_like(pixel_values[:, 0])  # (B, H, W)
        names = [output.name for output in self.session.get_outputs()]
        inputs = {"pixel_values": pixel_values.numpy(), "pixel_mask": pixel_mask.to(torch.int64).numpy()}
        values = self.session.run(names, inputs)
        return SimpleNamespace(**{name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)})
