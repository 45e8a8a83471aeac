"""Put the model's code beside its weights, for `trust_remote_code=True` without the package.

`sap-detr publish` does this by itself; this verb is for directories that are shared in another way.
"""

from dataclasses import dataclass
from typing import Annotated

from ..options import ARGUMENT, Settings


@dataclass(frozen=True)
class RemoteCodeSettings(Settings):
    """The text beside the field is its reason."""

    model_dir: Annotated[str, "directory with config.json, preprocessor_config.json and weights", ARGUMENT]
