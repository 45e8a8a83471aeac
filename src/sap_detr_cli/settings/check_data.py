"""Check a detection data set: images, boxes, categories.

The exit code is 0 where it can be trained on, 1 where not, 2 for what is no data set or model.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from ..options import ARGUMENT, AT_LEAST_1, Settings


@dataclass(frozen=True)
class CheckDataSettings(Settings):
    """What is checked; the text beside a field is its reason."""

    data: Annotated[
        str, "COCO folder or JSON, YOLO or Pascal VOC folder, saved data set, parquet folder, or Hub id", ARGUMENT
    ]
    split: Annotated[list[str], "splits to check"] = field(default_factory=lambda: ["train", "val"])
    annotations: Annotated[str | None, "COCO JSON, where it is not found by itself; with one --split"] = None
    images: Annotated[str | None, "image folder, where it is not found by itself"] = None
    box_format: Annotated[Literal["xywh", "xyxy"], "of a Hub data set's boxes"] = "xywh"
    categories: Annotated[Literal["contiguous", "coco91"], "how category ids become class indices"] = "contiguous"
    model: Annotated[str | None, "model folder or Hub id: compare classes and number of queries"] = None
    queries: Annotated[int | None, "report images with more boxes than this", AT_LEAST_1] = None
    fast: Annotated[bool, "do not open the images"] = False
    strict: Annotated[bool, "exit code 1 for warnings too"] = False
    json: Annotated[str | None, "write the whole report to this file"] = None

    def __post_init__(self):
        super().__post_init__()
        if self.annotations and len(self.split) > 1:
            raise ValueError("--annotations is the JSON of one split: name it with --split")
        if self.model and self.queries:
            raise ValueError("Name either --model, which has a number of queries, or --queries.")
