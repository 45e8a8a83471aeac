"""An exported file in a model's place: run by onnxruntime, OpenVINO or torch, on the CPU in float32."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from zipfile import is_zipfile

import torch
from torch import nn

from ..messages import first_line
from .formats import METADATA
from .graph import OUTPUT_NAMES
from .metadata import config_and_image_processor
from .packages import require_onnx, require_openvino

if TYPE_CHECKING:
    import onnxruntime

Run = Callable[[torch.Tensor, torch.Tensor], Sequence[torch.Tensor]]


class ExportedModel(nn.Module):
    """A file of `sap-detr export`, for a `Detector` and for [`evaluate_detections`].

    `config` holds `model_type`, `id2label` and `category_ids` as the file states them; `image_processor` is the
    model's.

    Args:
        path: .onnx, .xml (its .bin lies beside it) or .pt2.
        threads: as many as torch has unless given.
        trust_pt2: a .pt2 file is run only with it: torch reads such files with `eval` and pickle, so that one from
            somebody else can do anything.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: see [`require_onnx`] and [`require_openvino`].
        ValueError: it is no such model, was not written by `sap-detr export`, or is not trusted.
    """

    def __init__(self, path: str | Path, threads: int | None = None, trust_pt2: bool = False):
        super().__init__()
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{path}: there is no such file")
        if self.path.suffix == ".pt2" and not trust_pt2:
            raise ValueError(f"{path} can hold any code: if it is your own, give --trust-pt2; else take another format")
        self.run, metadata = OPENERS[self.path.suffix](self.path, threads or torch.get_num_threads())
        try:
            self.config, self.image_processor = config_and_image_processor(metadata)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} does not say how to prepare images: export it with `sap-detr export`") from error
        self.device_and_dtype = nn.Parameter(torch.zeros(()), requires_grad=False)  # a detector asks a parameter

    def forward(self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None = None) -> Any:
        """`logits` (B, N, K), `pred_boxes` (B, N, 4) and `pred_points` (B, N, 2), as the model's.

        Raises:
            ValueError: the program does not take images of this size.
        """
        if pixel_mask is None:
            pixel_mask = torch.ones_like(pixel_values[:, 0])  # (B, H, W)
        try:
            values = self.run(pixel_values, pixel_mask.to(torch.int64))
        except Exception as error:  # the runtimes' own exceptions share no other base class
            size = "{} x {}".format(*pixel_values.shape[-2:])
            raise ValueError(f"{self.path} cannot run images of {size} pixels: {first_line(error)}") from error
        return SimpleNamespace(**dict(zip(OUTPUT_NAMES, values, strict=True)))


def open_session(path: str | Path, threads: int | None = None) -> "onnxruntime.InferenceSession":
    """An onnxruntime session on the CPU, with as many threads as torch has unless `threads` says otherwise.

    Raises:
        ImportError: see [`require_onnx`].
        ValueError: it is no ONNX model.
    """
    require_onnx()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    # Threads that go on spinning after a run would slow whatever runs next: torch, in a comparison, to a third.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no other base class
        raise _unreadable(path, "an ONNX", error) from error


def _open_onnx(path: Path, threads: int) -> tuple[Run, dict[str, str]]:
    session = open_session(path, threads)

    def run(pixel_values: torch.Tensor, pixel_mask: torch.Tensor) -> Sequence[torch.Tensor]:
        inputs = {"pixel_values": pixel_values.numpy(), "pixel_mask": pixel_mask.numpy()}
        return [torch.from_numpy(values) for values in session.run(list(OUTPUT_NAMES), inputs)]

    return run, session.get_modelmeta().custom_metadata_map


def _open_openvino(path: Path, threads: int) -> tuple[Run, dict[str, str]]:
    openvino = require_openvino()
    # By itself, OpenVINO computes in bfloat16 where the processor can.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    try:
        core = openvino.Core()
        model = core.read_model(path)
        compiled = core.compile_model(model, "CPU", settings)
    except RuntimeError as error:  # which begins with places in OpenVINO's own files
        raise _unreadable(path, "an OpenVINO", str(error).strip().splitlines()[-1]) from error

    def run(pixel_values: torch.Tensor, pixel_mask: torch.Tensor) -> Sequence[torch.Tensor]:
        found = compiled({"pixel_values": pixel_values.numpy(), "pixel_mask": pixel_mask.numpy()})
        return [torch.from_numpy(found[name]) for name in OUTPUT_NAMES]

    return run, _texts(model.get_rt_info(METADATA).astype(str) if model.has_rt_info(METADATA) else "")


def _open_torch(path: Path, threads: int) -> tuple[Run, dict[str, str]]:
    from . import same_padding  # noqa: F401  # registers an operation that the program may hold

    contents = {METADATA: ""}
    if not is_zipfile(path):
        raise _unreadable(path, "a torch.export", "it is no zip file")
    try:
        program = torch.export.load(path, extra_files=contents)
    except Exception as error:  # of many kinds, for files that are broken in many ways
        raise _unreadable(path, "a torch.export", error) from error
    module = program.module()
    # Not the module itself: as a part of another it could not be set to evaluation mode, which it does not know.
    return lambda pixel_values, pixel_mask: module(pixel_values, pixel_mask), _texts(contents[METADATA])


def _texts(metadata: str) -> dict[str, str]:
    """By key; none where the file was not written by [`write_openvino`] or [`write_torch`]."""
    try:
        return json.loads(metadata)
    except ValueError:
        return {}


def _unreadable(path: str | Path, kind: str, error: object) -> ValueError:
    return ValueError(f"{path} cannot be loaded as {kind} model: {first_line(error)}")


OPENERS: dict[str, Callable[[Path, int], tuple[Run, dict[str, str]]]] = {
    ".onnx": _open_onnx,
    ".xml": _open_openvino,
    ".pt2": _open_torch,
}
