"""Check a detection data set: images, boxes, categories.

The exit code is 0 if you can train on the data, 1 if it has errors, 2 if the data set or model cannot be loaded.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from ..options import ARGUMENT, AT_LEAST_1, Settings


@dataclass(frozen=True)
class CheckDataSettings(Settings):
    """Settings of `sap-detr check-data`. The text beside a field is its help text."""

    data: Annotated[
        str, "COCO folder or JSON, YOLO or Pascal VOC folder, saved data set, parquet folder, or Hub id", ARGUMENT
    ]
    split: Annotated[list[str], "splits to check"] = field(default_factory=lambda: ["train", "val"])
    annotations: Annotated[str | None, "COCO JSON of one --split, if it is not detected"] = None
    images: Annotated[str | None, "image folder, if it is not detected"] = None
    box_format: Annotated[Literal["xywh", "xyxy"], "box format of a Hub data set"] = "xywh"
    categories: Annotated[Literal["contiguous", "coco91"], "how category ids become class indices"] = "contiguous"
    model: Annotated[
        str | None, "model directory or Hub id: compare its classes and number of queries with the data"
    ] = None
    queries: Annotated[int | None, "report images with more boxes than this", AT_LEAST_1] = None
    fast: Annotated[bool, "do not open the images"] = False
    strict: Annotated[bool, "treat warnings as errors: exit code 1"] = False
    json: Annotated[str | None, "write the full report to this JSON file"] = None

    def __post_init__(self):
        super().__post_init__()
        if self.annotations and len(self.split) > 1:
            raise ValueError("--annotations is the JSON of one split: give that one with --split")
        if self.model and self.queries:
            raise ValueError("Give either --model or --queries: a model already has a number of queries.")
