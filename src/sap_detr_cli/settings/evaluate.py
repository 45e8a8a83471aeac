"""Measure COCO AP of a saved model and write a report.

OUTPUT gets results.json (numbers, settings, versions, hardware, time), predictions.json (COCO results), per_class.md,
precision_recall.png, thresholds.png, mistakes.md, .png and .json (error types, confused classes), and with --worst the
worst images.
Several GPUs: accelerate launch --num_processes 4 -m sap_detr_cli evaluate MODEL DATA
Several processes on a CPU: torchrun --nproc_per_node 2 -m sap_detr_cli evaluate MODEL DATA --device cpu
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from ..options import ARGUMENT, AT_LEAST_0, AT_LEAST_1, Settings
from .slices import Overlap, SliceSize, WholeImage, check_slices


@dataclass(frozen=True)
class EvaluationSettings(Settings):
    """Everything an evaluation depends on; the text beside a field is its reason."""

    model: Annotated[str, "model directory, Hub id, or a file of `sap-detr export`", ARGUMENT]
    data: Annotated[str, "COCO folder or JSON, YOLO or Pascal VOC folder, saved data set folder or Hub id", ARGUMENT]
    split: Annotated[str, "split of the data"] = "val"
    annotations: Annotated[str | None, "COCO JSON, where DATA has another layout"] = None
    images: Annotated[str | None, "image folder, where DATA has another layout"] = None
    box_format: Annotated[
        Literal["xywh", "xyxy"], "box format of Hub data sets, which differ; COCO files are always xywh"
    ] = "xywh"
    cache_dir: Annotated[str | None, "where the Arrow index of the data is kept"] = None
    output: Annotated[str, "folder that gets the report"] = "evaluation"
    slice: SliceSize = None
    overlap: Overlap = None
    whole_image: WholeImage = None
    batch_size: Annotated[
        int,
        "images a batch and process, or slices of an image; does not change the numbers, up to rounding",
        AT_LEAST_1,
    ] = 1
    pad_batches: Annotated[
        bool, "padded batches as in the released evaluation: images of a batch affect each other"
    ] = False
    workers: Annotated[int, "loader processes of each process", AT_LEAST_0] = 2
    device: Annotated[Literal["auto", "cpu", "cuda"], "where the model runs"] = "auto"
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], "float32, or autocast to bfloat16 or float16"] = (
        "float32"
    )
    shortest_edge: Annotated[int | None, "image size; empty: as saved with the model", AT_LEAST_1] = None
    longest_edge: Annotated[int | None, "limit of the longer side; empty: as saved with the model", AT_LEAST_1] = None
    max_images: Annotated[int | None, "evaluate the first N images only: a trial", AT_LEAST_1] = None
    worst: Annotated[int, "draw the N images with the most mistakes", AT_LEAST_0] = 0
    overwrite: Annotated[bool, "replace an earlier report in the folder"] = False
    trust_pt2: Annotated[bool, "run MODEL.pt2, which can be any code: only your own"] = False

    def __post_init__(self):
        super().__post_init__()
        check_slices(self.slice, self.overlap, self.whole_image)
        if self.slice and self.pad_batches:
            raise ValueError("--pad-batches pads images of different size, which slices are not: leave it out")
