"""Put the model's code beside its weights, for `trust_remote_code=True` without the package.

`sap-detr publish` does this by itself; use this verb for a model directory that you share in another way.
"""

from dataclasses import dataclass
from typing import Annotated

from ..options import ARGUMENT, Settings


@dataclass(frozen=True)
class RemoteCodeSettings(Settings):
    """Settings of `sap-detr add-remote-code`. The text beside a field is its help text."""

    model_dir: Annotated[str, "directory with config.json, preprocessor_config.json and weights", ARGUMENT]
