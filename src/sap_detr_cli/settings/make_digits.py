"""Generate the demo's data set: handwritten digits over photographs, in COCO format."""

from dataclasses import dataclass, field
from typing import Annotated

from ..options import ARGUMENT, AT_LEAST_0, Limit, Settings


@dataclass(frozen=True)
class DigitsSettings(Settings):
    """Settings of `sap-detr make-digits`. The text beside a field is its help text."""

    extra = "demo"

    output_dir: Annotated[str, "folder for images/{train,val} and annotations/", ARGUMENT]
    train: Annotated[int, "number of training images"] = 1600
    val: Annotated[int, "number of validation images"] = 150
    size: Annotated[
        list[int], "width and height of the images", Limit("a width and a height", lambda size: len(size) == 2)
    ] = field(default_factory=lambda: [224, 224])
    seed: Annotated[int, "seed of the random images", AT_LEAST_0] = 0
