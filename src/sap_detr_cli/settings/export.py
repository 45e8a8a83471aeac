"""Export a model to ONNX, for any batch and image size, and compare its outputs in onnxruntime with torch.

The exit code is 1 if the outputs differ from torch, 2 if the model or path cannot be used.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ..options import ABOVE_0, ARGUMENT, Settings


@dataclass(frozen=True)
class ExportSettings(Settings):
    """Settings of `sap-detr export`. The text beside a field is its help text."""

    extra = "onnx"

    model: Annotated[str, "model directory or Hub id", ARGUMENT]
    output: Annotated[str, "the .onnx file to write", ARGUMENT]
    tolerance: Annotated[float, "largest accepted difference of an output from torch", ABOVE_0] = 1e-3
    int8: Annotated[bool, "also write OUTPUT.int8.onnx, with 8-bit linear layers"] = False

    def __post_init__(self):
        super().__post_init__()
        if Path(self.output).suffix != ".onnx" or not Path(self.output).parent.is_dir():
            raise ValueError(f"{self.output} must end in .onnx and be in an existing directory")
