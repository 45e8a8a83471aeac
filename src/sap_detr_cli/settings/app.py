"""Serve a browser page to try a model: upload an image, move the threshold, look at attention."""

from dataclasses import dataclass
from typing import Annotated

from ..options import ARGUMENT, AT_LEAST_0, FRACTION, Settings


@dataclass(frozen=True)
class AppSettings(Settings):
    """Settings of `sap-detr app`. The text beside a field is its help text."""

    extra = "app"

    model: Annotated[str, "model directory or Hub id", ARGUMENT]
    examples: Annotated[str | None, "folder of example images; the page offers the first 12"] = None
    threshold: Annotated[float, "initial score threshold", FRACTION] = 0.5
    title: Annotated[str, "the page's heading"] = "SAP-DETR object detection"
    host: Annotated[str, "address to serve on; 0.0.0.0 allows access from other machines"] = "127.0.0.1"
    port: Annotated[int | None, "port to serve on; empty: the first free port from 7860", AT_LEAST_0] = None
    export_space: Annotated[str | None, "write a Hugging Face Space into this folder instead of serving"] = None
    license: Annotated[str | None, "license of the Space with its model and images: apache-2.0, cc-by-4.0, ..."] = None

    def __post_init__(self):
        super().__post_init__()
        if self.license and not self.export_space:
            raise ValueError("--license only works with --export-space")
