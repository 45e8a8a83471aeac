"""Draw how a detection is made: grid cell, reference point, side distances, layers and attention.

--annotations also draws the training matching: the ground-truth box of each query, at each decoder layer.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from ..options import ARGUMENT, AT_LEAST_0, Settings


@dataclass(frozen=True)
class ExplanationSettings(Settings):
    """Settings of `sap-detr explain`. The text beside a field is its help text."""

    extra = "app"

    model: Annotated[str, "model directory or Hub id", ARGUMENT]
    image: Annotated[str, "image file or http(s) URL", ARGUMENT]
    output: Annotated[str, "folder for the figures"]
    detection: Annotated[
        int | None, "detection to explain, 0 = highest score; empty: 0, or that of --query", AT_LEAST_0
    ] = None
    query: Annotated[int | None, "explain this query instead", AT_LEAST_0] = None
    threshold: Annotated[float, "minimum score of a detection"] = 0.5
    layer: Annotated[int, "decoder layer whose Gaussians and attention are drawn; -1 = last"] = -1
    annotations: Annotated[str | None, "COCO JSON with the ground-truth boxes: draws the training matching"] = None
    device: Annotated[Literal["auto", "cpu", "cuda"], "device of the model"] = "auto"
    overwrite: Annotated[bool, "replace an earlier explanation in the folder"] = False

    def __post_init__(self):
        super().__post_init__()
        if self.query is not None and self.detection is not None:
            raise ValueError("Give either `detection` or `query`, not both.")
