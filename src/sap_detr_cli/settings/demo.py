"""Train a small SAP-DINO-DETR on digits over photographs, in minutes, without a download.

It measures COCO AP and draws detections.
"""

from dataclasses import dataclass
from typing import Annotated

from ..options import AT_LEAST_1, Settings


@dataclass(frozen=True)
class DemoSettings(Settings):
    """Settings of `sap-detr demo`. The text beside a field is its help text."""

    extra = "demo"

    output: Annotated[str, "output folder"] = "demo_output"
    train: Annotated[int, "number of training images", AT_LEAST_1] = 2000
    val: Annotated[int, "number of validation images", AT_LEAST_1] = 150
    size: Annotated[int, "width and height of the images in pixels", AT_LEAST_1] = 128
    epochs: Annotated[int | None, "training epochs; empty: those of the recipe", AT_LEAST_1] = None
