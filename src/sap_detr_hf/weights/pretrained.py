"""Load saved models from a directory or the Hub; raise an error if weights are missing."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoModelForObjectDetection, PreTrainedConfig, PreTrainedModel

from ..messages import first_line
from ..model.pretrained_model import SapDetrPreTrainedModel

DEVICES = ("auto", "cpu", "cuda")
AUTOCAST_DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def check_device_and_dtype(device: str, dtype: str = "float32") -> None:
    """Make sure that a model can run on one of `DEVICES`, with one of `AUTOCAST_DTYPES`.

    Raises:
        ValueError: a choice is none of those offered, or there is no CUDA device.
    """
    for name, value, choices in (("device", device, DEVICES), ("dtype", dtype, AUTOCAST_DTYPES)):
        if value not in choices:
            raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(choices)}.")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but PyTorch finds no CUDA device.")


def needs_timm(config: PreTrainedConfig) -> bool:
    """Whether a model's backbone is one of timm's, which must then be installed."""
    return getattr(config.backbone_config, "model_type", None) == "timm_backbone"


def load_complete(name: str, **options: Any) -> PreTrainedModel:
    """A saved object detection model, from a directory or the Hub, in float32; `options` are `from_pretrained`'s.

    Raises:
        OSError: there is no such model.
        ValueError: it is no complete object detection model; some weights are missing.
    """
    with readable_model(name):
        model, loading = AutoModelForObjectDetection.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True, **options
        )
    absent = [str(key) for key in (*loading["missing_keys"], *loading["mismatched_keys"])]
    if absent:
        raise ValueError(f"{name} lacks {len(absent)} weights of its model, for instance {min(absent)}.")
    return model


def load_pretrained(name: str) -> tuple[PreTrainedModel, Any]:
    """A saved model, see [`load_complete`], and its image processor."""
    model = load_complete(name)
    with readable_model(name):
        return model, AutoImageProcessor.from_pretrained(name)


def load_detector(name: str, device: str = "auto") -> tuple[SapDetrPreTrainedModel, Any]:
    """Load a saved SAP-DETR in float32, in evaluation mode, and its image processor.

    The device "auto" is CUDA where there is one.

    Raises:
        OSError: there is no such model.
        ValueError: it is no complete SAP-DETR.
    """
    model, image_processor = load_pretrained(name)
    if not isinstance(model, SapDetrPreTrainedModel):
        raise ValueError(f"{name} is a model of the type {model.config.model_type}, not sap_detr or sap_dino_detr.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)  # type: ignore[arg-type]  # transformers' decorator hides the signature
    return model.eval(), image_processor


def at_size(image_processor: Any, shortest_edge: int | None, longest_edge: int | None) -> Any:
    """A copy of an image processor that resizes to other sides, in pixels; None keeps the side it has."""
    wanted = {"shortest_edge": shortest_edge, "longest_edge": longest_edge}
    size = {**dict(image_processor.size), **{key: value for key, value in wanted.items() if value is not None}}
    return type(image_processor).from_dict({**image_processor.to_dict(), "size": size})


@contextmanager
def readable_model(name: str) -> Iterator[None]:
    """Context manager that turns loading errors into a message about the model's directory or Hub id.

    Raises:
        OSError: there is no such model.
        ValueError: a file, or a directory without a model.
    """
    path = Path(name)
    if path.is_file():
        raise ValueError(
            f"{name} is a file, not a model directory; `sap-detr convert-checkpoint` converts a checkpoint to one."
        )
    if path.is_dir() and not (path / "config.json").is_file():
        raise ValueError(f"{name} is not a model directory: it has no config.json.")
    try:
        yield
    except OSError as error:
        place = "" if path.is_dir() else "is not a local model directory, and "
        raise OSError(f"{name} {place}cannot be loaded: {first_line(error)}") from error
