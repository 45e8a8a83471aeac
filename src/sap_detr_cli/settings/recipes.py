"""List the recipes of the package, or copy one: `sap-detr recipes copy NAME [TARGET]`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from ..options import ARGUMENT, Settings


@dataclass(frozen=True)
class RecipesSettings(Settings):
    """Settings of `sap-detr recipes`. The text beside a field is its help text."""

    action: Annotated[Literal["list", "copy"], "list all recipes, or copy the recipe NAME", ARGUMENT] = "list"
    name: Annotated[str | None, "name of the recipe to copy", ARGUMENT] = None
    target: Annotated[str | None, "file or folder for the copy; empty: NAME.yaml in the current folder", ARGUMENT] = (
        None
    )

    def __post_init__(self):
        super().__post_init__()
        if (self.action == "copy") != (self.name is not None):
            raise ValueError(
                "Give the name of the recipe to copy: `sap-detr recipes copy NAME`; `sap-detr recipes` lists them."
            )
