"""Draw training images after augmentation, with their boxes."""

from dataclasses import dataclass
from typing import Annotated, Literal

from ..options import ARGUMENT, AT_LEAST_0, AT_LEAST_1, Settings


@dataclass(frozen=True)
class ShowDataSettings(Settings):
    """Settings of `sap-detr show-data`. The text beside a field is its help text."""

    data: Annotated[
        str, "COCO folder or JSON, YOLO or Pascal VOC folder, saved data set, parquet folder, or Hub id", ARGUMENT
    ]
    output: Annotated[str, "folder for the drawn images"]
    split: Annotated[str, "split to draw"] = "train"
    annotations: Annotated[str | None, "COCO JSON, if it is not detected"] = None
    images: Annotated[str | None, "image folder, if it is not detected"] = None
    box_format: Annotated[Literal["xywh", "xyxy"], "box format of a Hub data set"] = "xywh"
    count: Annotated[int, "number of images", AT_LEAST_1] = 16
    augmentation: Annotated[str, "none, flip, released, strong[-no-flip], or package.module:callable"] = "released"
    shortest_edge: Annotated[
        int | None, "length of the shorter side in pixels; empty: the model's, or 800", AT_LEAST_1
    ] = None
    longest_edge: Annotated[
        int | None, "limit of the longer side in pixels; empty: the model's, or 1333", AT_LEAST_1
    ] = None
    model: Annotated[str | None, "model directory or Hub id whose image processor is used"] = None
    seed: Annotated[int, "seed of the augmentation", AT_LEAST_0] = 42
    epoch: Annotated[int, "epoch whose augmentation is drawn: each epoch differs", AT_LEAST_0] = 0
    overwrite: Annotated[bool, "replace the images of an earlier run"] = False
