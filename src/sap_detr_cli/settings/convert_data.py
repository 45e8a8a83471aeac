"""Write a data set in another format: COCO, YOLO or Pascal VOC.

TARGET is a new or empty folder; it receives the complete data set with its images. YOLO and Pascal VOC cannot represent
crowd regions and boxes outside the image: such annotations are skipped and counted.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from ..options import ARGUMENT, Settings


@dataclass(frozen=True)
class DataConversionSettings(Settings):
    """Settings of `sap-detr convert-data`. The text beside a field is its help text."""

    source: Annotated[
        str, "data set: COCO, YOLO or Pascal VOC folder, saved data set, parquet folder, or Hub id", ARGUMENT
    ]
    target: Annotated[str, "folder for the new data set", ARGUMENT]
    to: Annotated[Literal["coco", "yolo", "voc"], "format of the new data set"]
    split: Annotated[list[str], "splits to write; a JSON file is one split, called after the file by default"] = field(
        default_factory=lambda: ["train", "val"]
    )
    val_share: Annotated[
        float, "share of the images of one --split that become val, the others train; at random, each time the same"
    ] = 0.0
    annotations: Annotated[str | None, "COCO JSON of one --split, if it is not detected"] = None
    images: Annotated[str | None, "image folder, if it is not detected"] = None
    box_format: Annotated[Literal["xywh", "xyxy"], "box format of a Hub data set"] = "xywh"
    link: Annotated[bool, "link to the images instead of copying them"] = False

    def __post_init__(self):
        super().__post_init__()
        if self.annotations and len(self.split) > 1:
            raise ValueError("--annotations is the JSON of one split: give that one with --split")
        if not 0 <= self.val_share < 1:
            raise ValueError(f"--val-share {self.val_share} must be at least 0 and below 1")
        if self.val_share and len(self.split) > 1:
            raise ValueError("--val-share divides one split: give that one with --split")
