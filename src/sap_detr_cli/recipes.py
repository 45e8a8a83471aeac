# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Find, list, copy and read the YAML recipes of the package."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .options import Settings, check_known, options
from .settings.recipes import RecipesSettings
from .settings.train import TrainingSettings


def recipe_folder() -> Path:
    """Return the folder of the recipes."""
    spec = find_spec("sap_detr_hf")  # an import would load torch
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "recipes"


def recipe_files() -> dict[str, Path]:
    """Return the recipes by name, then the files for Accelerate and SLURM as `accelerate/NAME`."""
    folder = recipe_folder()
    paths = [path for pattern in ("*.yaml", "*/*.yaml", "*/*.sh") for path in sorted(folder.glob(pattern))]
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}


def recipe_file(name: str | Path) -> Path:
    """Return the path of a recipe, given its name or a file.

    Raises:
        FileNotFoundError: neither exists; the message lists the recipes.
    """
    files = recipe_files()
    if str(name) in files:
        return files[str(name)]
    if Path(name).is_file():
        return Path(name)
    known = ", ".join(recipe for recipe in files if "/" not in recipe)
    raise FileNotFoundError(f"{name} is neither a file nor one of the recipes {known}.")


def read_recipe(name: str | Path, settings: type[Settings] = TrainingSettings) -> dict[str, Any]:
    """Read a YAML recipe, one of the package or a file, into a dictionary from setting to value.

    Raises:
        OSError: the recipe does not exist.
        ValueError: not a YAML mapping, a wrong value, or an unknown key (the message suggests the most similar one).
    """
    from yaml import YAMLError

    from .yaml_settings import read_mapping

    path = recipe_file(name)
    known = {option.name: option for option in options(settings)}
    values: dict[str, Any] = {}
    try:
        pairs = read_mapping(path.read_text(encoding="utf-8-sig"), {n for n, o in known.items() if o.is_mapping})
        for key, value in pairs:
            check_known(key, settings, "it", "sap-detr train")
            if key in values:
                raise ValueError(f"it sets `{key}` twice")
            values[key] = known[key].checked(value)
    except (YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"The recipe {path} is not valid YAML: {' '.join(str(error).split())}") from error
    except ValueError as error:
        raise ValueError(f"The recipe {path} cannot be used: {error}") from error
    return values


def run(settings: RecipesSettings) -> int:
    """List the recipes, or copy one; an existing file is never overwritten."""
    if settings.action == "list":
        files = recipe_files()
        width = max(map(len, files)) + 2
        for name, path in files.items():
            comment = next(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# "))
            print(f"{name:<{width}}{comment.lstrip('# ')}")
        return 0
    assert settings.name is not None
    source = recipe_file(settings.name)
    target = Path(settings.target or source.name)
    if target.is_dir():
        target /= source.name
    try:
        with target.open("x", encoding="utf-8") as copy:
            copy.write(source.read_text(encoding="utf-8"))
    except FileExistsError as error:
        raise FileExistsError(f"{target} exists already: name another file.") from error
    if source.suffix == ".sh":
        print(f"{target}: edit its first lines, then `sbatch {target} RECIPE --output_dir FOLDER`.")
    elif "/" in settings.name:
        print(f"{target}: edit it, then `accelerate launch --config_file {target} -m sap_detr_cli train RECIPE`.")
    else:
        print(f"{target}: edit it, then `sap-detr train {target}`.")
    return 0
