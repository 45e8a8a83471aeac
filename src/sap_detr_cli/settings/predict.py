"""Detect objects in files, folders, patterns, addresses, videos or the images of a COCO JSON.

OUTPUT gets detections.jsonl (one readable record an image), predictions.json (COCO results), failed.jsonl (what could
not be read), pictures/, and with --as-annotations pre_labels/: a data set to correct in an annotation tool. The exit
code is 0 when everything was predicted, 1 when an input failed, 2 for a model, argument or folder that cannot be used.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from ..options import ABOVE_0, ARGUMENT, AT_LEAST_0, AT_LEAST_1, FRACTION, Settings
from .slices import Overlap, SliceSize, WholeImage, check_slices


@dataclass(frozen=True)
class PredictionSettings(Settings):
    """Everything a prediction depends on; the text beside a field is its reason."""

    model: Annotated[str, "model directory, Hub id, or a file of `sap-detr export`", ARGUMENT]
    inputs: Annotated[list[str], "files, folders, patterns, addresses, videos, or one COCO JSON", ARGUMENT]
    output: Annotated[str, "folder that gets the results"]
    images: Annotated[str | None, "image folder of a COCO JSON, where it is not found by itself"] = None
    every: Annotated[int, "take every Nth frame of videos", AT_LEAST_1] = 1
    threshold: Annotated[float, "only detections of a higher score; 0 for COCO AP", AT_LEAST_0] = 0.5
    top_k: Annotated[int, "detections of an image at most", AT_LEAST_1] = 300
    nms: Annotated[float | None, "class-wise non-maximum suppression above this IoU; SAP-DETR needs none", FRACTION] = (
        None
    )
    slice: SliceSize = None
    overlap: Overlap = None
    whole_image: WholeImage = None
    batch_size: Annotated[int, "images of equal size, or slices of an image, that run together", AT_LEAST_1] = 1
    workers: Annotated[int, "threads that open and resize images ahead", AT_LEAST_0] = 2
    device: Annotated[Literal["auto", "cpu", "cuda"], "where the model runs"] = "auto"
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], "float32, or autocast to bfloat16 or float16"] = (
        "float32"
    )
    pictures: Annotated[bool, "write pictures with boxes, names and points"] = True
    as_annotations: Annotated[
        Literal["coco", "yolo"] | None, "also write a data set for annotation tools; only coco keeps scores"
    ] = None
    overwrite: Annotated[bool, "replace the results of an earlier prediction in the folder"] = False
    timeout: Annotated[float, "seconds that a download may take", ABOVE_0] = 20.0
    max_download: Annotated[float, "largest download in MiB", ABOVE_0] = 64.0
    trust_pt2: Annotated[bool, "run MODEL.pt2, which can be any code: only your own"] = False

    def __post_init__(self):
        super().__post_init__()
        check_slices(self.slice, self.overlap, self.whole_image)
