"""Train a small SAP-DETR on digits over photographs and show what it finds: minutes, no download."""

from dataclasses import dataclass
from typing import Annotated

from ..options import AT_LEAST_1, Settings


@dataclass(frozen=True)
class DemoSettings(Settings):
    """The size of the demo; the text beside a field is its reason."""

    extra = "demo"

    output: Annotated[str, "folder that gets everything"] = "demo_output"
    train: Annotated[int, "training pictures", AT_LEAST_1] = 2000
    val: Annotated[int, "validation pictures", AT_LEAST_1] = 150
    size: Annotated[int, "side of the pictures in pixels", AT_LEAST_1] = 128
    epochs: Annotated[int | None, "empty: the recipe's", AT_LEAST_1] = None
