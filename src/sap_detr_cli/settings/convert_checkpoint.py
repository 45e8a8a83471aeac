"""Convert a checkpoint of the released SAP-DETR code to a model directory of transformers."""

from dataclasses import dataclass
from typing import Annotated, Literal

from ..options import ARGUMENT, Settings


@dataclass(frozen=True)
class ConversionSettings(Settings):
    """What is converted; the text beside a field is its reason."""

    checkpoint: Annotated[str, "the released .pth file, or a bare state dict", ARGUMENT]
    output_dir: Annotated[str, "a new directory for weights, configuration, processor and model card", ARGUMENT]
    variant: Annotated[Literal["r50", "r50-dc5", "r101", "r101-dc5"] | None, "where the checkpoint has no `args`"] = (
        None
    )
    dilation: Annotated[bool | None, "DC5 or not, where the checkpoint has no `args`"] = None
    verify: Annotated[bool, "reload, compare every tensor, run a forward pass"] = False
