"""Create a model directory with weights of a DETR, DAB-DETR, Conditional DETR or Deformable DETR."""

from dataclasses import dataclass
from typing import Annotated

from ..options import ARGUMENT, Settings


@dataclass(frozen=True)
class WarmStartSettings(Settings):
    """Settings of `sap-detr warm-start`. The text beside a field is its help text."""

    source: Annotated[
        str, "directory or Hub id of a dab-detr, detr, conditional_detr or deformable_detr model", ARGUMENT
    ]
    output_dir: Annotated[str, "a new directory for weights, configuration, processor and model card", ARGUMENT]
