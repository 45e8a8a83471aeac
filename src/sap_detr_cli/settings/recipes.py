"""List the recipes of the package, or copy one: `sap-detr recipes copy NAME [TARGET]`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from ..options import ARGUMENT, Settings


@dataclass(frozen=True)
class RecipesSettings(Settings):
    """What is done with the recipes."""

    action: Annotated[Literal["list", "copy"], "list them, or copy the one of NAME", ARGUMENT] = "list"
    name: Annotated[str | None, "of the recipe to copy", ARGUMENT] = None
    target: Annotated[str | None, "file or folder of the copy; empty: NAME.yaml here", ARGUMENT] = None

    def __post_init__(self):
        super().__post_init__()
        if (self.action == "copy") != (self.name is not None):
            raise ValueError("Name the recipe to copy: `sap-detr recipes copy NAME`; `sap-detr recipes` lists them.")
