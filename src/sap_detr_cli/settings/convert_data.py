"""Write a data set in another format: COCO, YOLO or Pascal VOC.

TARGET gets a complete data set with its images: a folder that does not exist yet, or is empty. YOLO and Pascal VOC have
no crowd regions and no boxes beyond the image; what they cannot hold is left out and counted.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from ..options import ARGUMENT, Settings


@dataclass(frozen=True)
class DataConversionSettings(Settings):
    """What is written; the text beside a field is its reason."""

    source: Annotated[
        str, "data set: COCO, YOLO or Pascal VOC folder, saved data set, parquet folder, or Hub id", ARGUMENT
    ]
    target: Annotated[str, "folder for the new data set", ARGUMENT]
    to: Annotated[Literal["coco", "yolo", "voc"], "its format"]
    split: Annotated[list[str], "splits to write"] = field(default_factory=lambda: ["train", "val"])
    annotations: Annotated[str | None, "COCO JSON, where it is not found by itself; with one --split"] = None
    images: Annotated[str | None, "image folder, where it is not found by itself"] = None
    box_format: Annotated[Literal["xywh", "xyxy"], "of a Hub data set's boxes"] = "xywh"
    link: Annotated[bool, "link to the images instead of copying them"] = False

    def __post_init__(self):
        super().__post_init__()
        if self.annotations and len(self.split) > 1:
            raise ValueError("--annotations is the JSON of one split: name it with --split")
