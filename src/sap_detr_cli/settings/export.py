"""Export a model to ONNX, OpenVINO or torch.export, and compare it with torch.

The file takes any batch and image size.

TARGET is model.onnx, model.xml (OpenVINO, its weights in model.bin beside it) or model.pt2 (torch.export); or, with
--format, a folder that gets such a file. `predict` and `evaluate` take it. A .pt2 can be any code: run only your own.
The exit code is 1 for an export that differs from torch, of which no file is left, 2 for a model or path of no use.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from ..options import ABOVE_0, ARGUMENT, AT_LEAST_1, Settings

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}


@dataclass(frozen=True)
class ExportSettings(Settings):
    """Settings of `sap-detr export`. The text beside a field is its help text."""

    extra = "onnx"

    model: Annotated[str, "model directory or Hub id", ARGUMENT]
    target: Annotated[str, "file to write, or with --format the folder that gets it", ARGUMENT]
    format: Annotated[Literal["onnx", "openvino", "torch"] | None, "empty: as TARGET ends"] = None
    tolerance: Annotated[float, "largest accepted difference from torch", ABOVE_0] = 1e-3
    int8: Annotated[bool, "8-bit weights and activations, calibrated on --calibrate; not for torch"] = False
    calibrate: Annotated[str | None, "folder, pattern or COCO JSON of pictures like those of the training"] = None
    calibration_images: Annotated[int, "of them, taken evenly", AT_LEAST_1] = 100

    def __post_init__(self):
        super().__post_init__()
        suffix = Path(self.target).suffix
        if suffix not in SUFFIXES.values() and self.format is None:
            raise ValueError(f"{self.target} must end in .onnx, .xml or .pt2; or name a folder, and give --format.")
        if suffix in SUFFIXES.values() and self.format is not None and suffix != SUFFIXES[self.format]:
            raise ValueError(f"{self.target} does not end in {SUFFIXES[self.format]}, as --format {self.format} does.")
        if not self.path.parent.parent.is_dir() if self.in_folder else not self.path.parent.is_dir():
            raise ValueError(f"{self.target} must lie in a directory that exists.")
        if self.int8 != (self.calibrate is not None):
            raise ValueError("--int8 and --calibrate PICTURES go together: the pictures tell the ranges of all values.")
        if self.int8 and self.path.suffix == SUFFIXES["torch"]:
            raise ValueError("--int8 is for ONNX and OpenVINO: torch.export writes float32.")

    @property
    def in_folder(self) -> bool:
        """Whether the target names a folder."""
        return Path(self.target).suffix not in SUFFIXES.values()

    @property
    def path(self) -> Path:
        """The file to write."""
        if self.format is None or not self.in_folder:
            return Path(self.target)
        return Path(self.target, f"model{SUFFIXES[self.format]}")
