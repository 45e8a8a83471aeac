"""Draw what the model will see in training: images after augmentation, with their boxes."""

from dataclasses import dataclass
from typing import Annotated, Literal

from ..options import ARGUMENT, AT_LEAST_0, AT_LEAST_1, Settings


@dataclass(frozen=True)
class ShowDataSettings(Settings):
    """What is drawn; the text beside a field is its reason."""

    data: Annotated[
        str, "COCO folder or JSON, YOLO or Pascal VOC folder, saved data set, parquet folder, or Hub id", ARGUMENT
    ]
    output: Annotated[str, "folder for the pictures"]
    split: Annotated[str, "split of the data"] = "train"
    annotations: Annotated[str | None, "COCO JSON, where it is not found by itself"] = None
    images: Annotated[str | None, "image folder, where it is not found by itself"] = None
    box_format: Annotated[Literal["xywh", "xyxy"], "of Hub data"] = "xywh"
    count: Annotated[int, "number of images", AT_LEAST_1] = 16
    augmentation: Annotated[str, "none, flip, released, strong[-no-flip], or package.module:callable"] = "released"
    shortest_edge: Annotated[int | None, "pixels; empty: the model's, or 800", AT_LEAST_1] = None
    longest_edge: Annotated[int | None, "pixels; empty: the model's, or 1333", AT_LEAST_1] = None
    model: Annotated[str | None, "take the image processor of this model folder or Hub id"] = None
    seed: Annotated[int, "of the augmentation", AT_LEAST_0] = 42
    epoch: Annotated[int, "every epoch augments anew", AT_LEAST_0] = 0
    overwrite: Annotated[bool, "replace the pictures of an earlier run"] = False
