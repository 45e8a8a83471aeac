"""Convert a checkpoint of the authors' SAP-DETR code to a transformers model directory."""

from dataclasses import dataclass
from typing import Annotated, Literal

from ..options import ARGUMENT, Settings


@dataclass(frozen=True)
class ConversionSettings(Settings):
    """Settings of `sap-detr convert-checkpoint`. The text beside a field is its help text."""

    checkpoint: Annotated[str, "the authors' .pth file, or a plain state dict", ARGUMENT]
    output_dir: Annotated[str, "a new directory for weights, configuration, processor and model card", ARGUMENT]
    variant: Annotated[Literal["r50", "r50-dc5", "r101", "r101-dc5"] | None, "if the checkpoint has no `args`"] = None
    dilation: Annotated[bool | None, "whether the model is DC5, if the checkpoint has no `args`"] = None
    verify: Annotated[bool, "reload the model, compare every tensor, run a forward pass"] = False
