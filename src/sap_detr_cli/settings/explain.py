"""Show how SAP-DETR came to a detection: grid, point, sides, layers, Gaussians and attention.

With --annotations also which query learns which true box in training, at each decoder layer.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from ..options import ARGUMENT, AT_LEAST_0, Settings


@dataclass(frozen=True)
class ExplanationSettings(Settings):
    """What is explained; the text beside a field is its reason."""

    extra = "app"

    model: Annotated[str, "model directory or Hub id", ARGUMENT]
    image: Annotated[str, "file or http(s) address", ARGUMENT]
    output: Annotated[str, "folder that gets the pictures"]
    detection: Annotated[int | None, "which detection, 0 = the best; empty: 0, or the one of --query", AT_LEAST_0] = (
        None
    )
    query: Annotated[int | None, "explain this query instead", AT_LEAST_0] = None
    threshold: Annotated[float, "what counts as a detection"] = 0.5
    layer: Annotated[int, "decoder layer of Gaussian and attention, negative from the last"] = -1
    annotations: Annotated[str | None, "COCO JSON with the image's true boxes: draws the matching of training"] = None
    device: Annotated[Literal["auto", "cpu", "cuda"], "where the model runs"] = "auto"
    overwrite: Annotated[bool, "replace an earlier explanation in the folder"] = False

    def __post_init__(self):
        super().__post_init__()
        if self.query is not None and self.detection is not None:
            raise ValueError("Name either `detection` or `query`, not both.")
