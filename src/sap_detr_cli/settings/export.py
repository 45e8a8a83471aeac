"""Export a model to ONNX, for any batch and image size, and compare it with torch on onnxruntime.

The exit code is 1 for an export that differs from torch, 2 for a model or path that cannot be used.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ..options import ABOVE_0, ARGUMENT, Settings


@dataclass(frozen=True)
class ExportSettings(Settings):
    """What is exported; the text beside a field is its reason."""

    extra = "onnx"

    model: Annotated[str, "model directory or Hub id", ARGUMENT]
    output: Annotated[str, "the .onnx file to write", ARGUMENT]
    tolerance: Annotated[float, "largest accepted difference from torch", ABOVE_0] = 1e-3
    int8: Annotated[bool, "also write OUTPUT.int8.onnx, with 8-bit linear layers"] = False

    def __post_init__(self):
        super().__post_init__()
        if Path(self.output).suffix != ".onnx" or not Path(self.output).parent.is_dir():
            raise ValueError(f"{self.output} must end in .onnx and lie in a directory that exists")
