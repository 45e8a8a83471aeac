"""Serve a page to try a model on: upload a picture, move the threshold, look at attention."""

from dataclasses import dataclass
from typing import Annotated

from ..options import ARGUMENT, AT_LEAST_0, FRACTION, Settings


@dataclass(frozen=True)
class AppSettings(Settings):
    """What is served; the text beside a field is its reason."""

    extra = "app"

    model: Annotated[str, "model directory or Hub id", ARGUMENT]
    examples: Annotated[str | None, "folder of pictures to pick from; the first 12 are taken"] = None
    threshold: Annotated[float, "where the slider stands at first", FRACTION] = 0.5
    title: Annotated[str, "the page's heading"] = "SAP-DETR object detection"
    host: Annotated[str, "0.0.0.0 lets other machines in"] = "127.0.0.1"
    port: Annotated[int | None, "empty: the first free one from 7860", AT_LEAST_0] = None
    export_space: Annotated[str | None, "write a Hugging Face Space into this folder and end"] = None
    license: Annotated[str | None, "of the Space and what is copied into it: apache-2.0, cc-by-4.0, ..."] = None

    def __post_init__(self):
        super().__post_init__()
        if self.license and not self.export_space:
            raise ValueError("--license belongs to --export-space")
