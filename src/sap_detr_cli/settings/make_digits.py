"""Generate the demo's data set: handwritten digits over photographs, in COCO format."""

from dataclasses import dataclass, field
from typing import Annotated

from ..options import ARGUMENT, AT_LEAST_0, Limit, Settings


@dataclass(frozen=True)
class DigitsSettings(Settings):
    """The data set's size; the text beside a field is its reason."""

    extra = "demo"

    output_dir: Annotated[str, "folder that gets images/{train,val} and annotations/", ARGUMENT]
    train: Annotated[int, "training pictures"] = 1600
    val: Annotated[int, "validation pictures"] = 150
    size: Annotated[
        list[int], "width and height of the pictures", Limit("a width and a height", lambda size: len(size) == 2)
    ] = field(default_factory=lambda: [224, 224])
    seed: Annotated[int, "of the pictures", AT_LEAST_0] = 0
