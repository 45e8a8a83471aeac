"""Detect objects in files, folders, patterns, URLs, videos or the images of a COCO JSON.

OUTPUT receives detections.jsonl (one line per image), predictions.json (COCO results), failed.jsonl (inputs that could
not be read), pictures/ (images with their boxes), and with --as-annotations pre_labels/: a data set to correct in an
annotation tool. The exit code is 0 if all inputs were predicted, 1 if one failed, 2 if the model, an argument or a
folder cannot be used.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from ..options import ABOVE_0, ARGUMENT, AT_LEAST_0, AT_LEAST_1, FRACTION, Settings
from .slices import Overlap, SliceSize, WholeImage, check_slices


@dataclass(frozen=True)
class PredictionSettings(Settings):
    """Settings of `sap-detr predict`. The text beside a field is its help text."""

    model: Annotated[str, "model directory, Hub id, or a file of `sap-detr export`", ARGUMENT]
    inputs: Annotated[list[str], "files, folders, patterns, URLs, videos, or one COCO JSON", ARGUMENT]
    output: Annotated[str, "folder for the results"]
    images: Annotated[str | None, "image folder of a COCO JSON, if it is not detected"] = None
    every: Annotated[int, "predict every Nth frame of a video", AT_LEAST_1] = 1
    threshold: Annotated[float, "keep detections above this score; use 0 to measure COCO AP", AT_LEAST_0] = 0.5
    top_k: Annotated[int, "largest number of detections per image", AT_LEAST_1] = 300
    nms: Annotated[float | None, "class-wise non-maximum suppression above this IoU; SAP-DETR needs none", FRACTION] = (
        None
    )
    slice: SliceSize = None
    overlap: Overlap = None
    whole_image: WholeImage = None
    batch_size: Annotated[int, "images of the same size, or slices of an image, per forward pass", AT_LEAST_1] = 1
    workers: Annotated[int, "threads that load and resize images", AT_LEAST_0] = 2
    device: Annotated[Literal["auto", "cpu", "cuda"], "device of the model"] = "auto"
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], "float32, or autocast to bfloat16 or float16"] = (
        "float32"
    )
    pictures: Annotated[bool, "draw boxes, class names and reference points on the images"] = True
    as_annotations: Annotated[
        Literal["coco", "yolo"] | None, "also write a data set for annotation tools; yolo has no scores"
    ] = None
    overwrite: Annotated[bool, "replace the results of an earlier prediction in the folder"] = False
    timeout: Annotated[float, "time limit of a download in seconds", ABOVE_0] = 20.0
    max_download: Annotated[float, "size limit of a download in MiB", ABOVE_0] = 64.0
    trust_pt2: Annotated[bool, "run MODEL.pt2, which can be any code: only your own"] = False

    def __post_init__(self):
        super().__post_init__()
        check_slices(self.slice, self.overlap, self.whole_image)
