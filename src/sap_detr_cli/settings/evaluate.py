"""Measure COCO AP of a saved model and write a report.

OUTPUT receives results.json (metrics, settings, versions, hardware, time), predictions.json (COCO results),
per_class.md, precision_recall.png, thresholds.png, mistakes.md, .png and .json (error types, confused classes), and
with --worst the images with the most mistakes.
Several GPUs: accelerate launch --num_processes 4 -m sap_detr_cli evaluate MODEL DATA
Several processes on a CPU: torchrun --nproc_per_node 2 -m sap_detr_cli evaluate MODEL DATA --device cpu
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from ..options import ARGUMENT, AT_LEAST_0, AT_LEAST_1, Settings
from .slices import Overlap, SliceSize, WholeImage, check_slices


@dataclass(frozen=True)
class EvaluationSettings(Settings):
    """Settings of `sap-detr evaluate`. The text beside a field is its help text."""

    model: Annotated[str, "model directory, Hub id, or a file of `sap-detr export`", ARGUMENT]
    data: Annotated[str, "COCO folder or JSON, YOLO or Pascal VOC folder, saved data set folder or Hub id", ARGUMENT]
    split: Annotated[str, "split to evaluate"] = "val"
    annotations: Annotated[str | None, "COCO JSON, if DATA has another layout"] = None
    images: Annotated[str | None, "image folder, if DATA has another layout"] = None
    box_format: Annotated[Literal["xywh", "xyxy"], "box format of a Hub data set; COCO files are always xywh"] = "xywh"
    cache_dir: Annotated[str | None, "folder for the cached Arrow index of the data"] = None
    output: Annotated[str, "folder for the report"] = "evaluation"
    slice: SliceSize = None
    overlap: Overlap = None
    whole_image: WholeImage = None
    batch_size: Annotated[
        int,
        "images (or slices of an image) per batch and process; changes the metrics only by rounding",
        AT_LEAST_1,
    ] = 1
    pad_batches: Annotated[bool, "pad batches as the authors' evaluation does: images in a batch affect each other"] = (
        False
    )
    workers: Annotated[int, "data loader workers per process", AT_LEAST_0] = 2
    device: Annotated[Literal["auto", "cpu", "cuda"], "device of the model"] = "auto"
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], "float32, or autocast to bfloat16 or float16"] = (
        "float32"
    )
    shortest_edge: Annotated[
        int | None, "length of the shorter side in pixels; empty: as saved with the model", AT_LEAST_1
    ] = None
    longest_edge: Annotated[int | None, "limit of the longer side; empty: as saved with the model", AT_LEAST_1] = None
    max_images: Annotated[int | None, "evaluate only the first N images, for a quick test", AT_LEAST_1] = None
    worst: Annotated[int, "draw the N images with the most mistakes", AT_LEAST_0] = 0
    overwrite: Annotated[bool, "replace an earlier report in the folder"] = False
    trust_pt2: Annotated[bool, "run MODEL.pt2, which can be any code: only your own"] = False

    def __post_init__(self):
        super().__post_init__()
        check_slices(self.slice, self.overlap, self.whole_image)
        if self.slice and self.pad_batches:
            raise ValueError("--pad-batches cannot be used with --slice: all slices have the same size")
