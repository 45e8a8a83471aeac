"""Start a model directory from the weights of a DETR, DAB-, Conditional or Deformable DETR."""

from dataclasses import dataclass
from typing import Annotated

from ..options import ARGUMENT, Settings


@dataclass(frozen=True)
class WarmStartSettings(Settings):
    """What is started from; the text beside a field is its reason."""

    source: Annotated[
        str, "directory or Hub id of a dab-detr, detr, conditional_detr or deformable_detr model", ARGUMENT
    ]
    output_dir: Annotated[str, "a new directory for weights, configuration, processor and model card", ARGUMENT]
