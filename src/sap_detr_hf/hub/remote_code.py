"""Copy the model's code beside its weights, so that `trust_remote_code=True` loads it without this package."""

import inspect
import json
import os
import re
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, MODEL_FOR_OBJECT_DETECTION_MAPPING, MODEL_MAPPING, PreTrainedConfig
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

from .. import model
from ..files import whole_file
from ..model.detector_configuration import DetectorConfig

MODEL_FOLDER = Path(model.__path__[0])
"""Holds all code that can travel to the Hub."""

MODEL_MAPPINGS = {"AutoModel": MODEL_MAPPING, "AutoModelForObjectDetection": MODEL_FOR_OBJECT_DETECTION_MAPPING}


def config_class_of(model_dir: str | os.PathLike) -> type[DetectorConfig]:
    """Return the configuration class of a saved model, which must be one of this package's.

    Raises:
        FileNotFoundError: the directory lacks config.json.
        ValueError: it is not valid JSON, or the model is of another type.
    """
    model_type = str(_read_json(Path(model_dir) / "config.json").get("model_type"))
    if model_type in CONFIG_MAPPING and issubclass(kind := CONFIG_MAPPING[model_type], DetectorConfig):
        return kind
    raise ValueError(
        f"{model_dir} holds a model of type {model_type!r}, which is none of this package's: only its own models "
        "can carry its code."
    )


def config_auto_map(config_class: type[PreTrainedConfig]) -> dict[str, str]:
    """Return `auto_map` of config.json: from each Auto class to the `module.Class` registered with it."""
    classes: dict[str, Any] = {"AutoConfig": config_class}
    classes |= {name: mapping[config_class] for name, mapping in MODEL_MAPPINGS.items() if config_class in mapping}
    return {name: f"{Path(inspect.getfile(each)).stem}.{each.__name__}" for name, each in classes.items()}


def image_processor_auto_map(config_class: type[PreTrainedConfig]) -> dict[str, dict[str, str]]:
    """Return `auto_map` of preprocessor_config.json; `AutoImageProcessor` takes the backend that the machine has.

    Without torchvision its class cannot be imported here: transformers saves the PIL class under its name.
    """
    backends: Any = IMAGE_PROCESSOR_MAPPING[config_class]
    pil = backends["pil"]
    names = {"torchvision": pil().to_dict()["image_processor_type"], "pil": pil.__name__}
    return {"AutoImageProcessor": {backend: f"{_module_with(name)}.{name}" for backend, name in names.items()}}


def _module_with(class_name: str) -> str:
    definition = re.compile(rf"^class {class_name}\b", re.MULTILINE)
    return next(path.stem for path in MODEL_FOLDER.glob("*.py") if definition.search(path.read_text(encoding="utf-8")))


def code_files(config_class: type[PreTrainedConfig]) -> list[Path]:
    """Return the files that define a model's Auto classes and, as transformers reads them, all that these import."""
    references = [
        *config_auto_map(config_class).values(),
        *image_processor_auto_map(config_class)["AutoImageProcessor"].values(),
    ]
    entries = {MODEL_FOLDER / f"{reference.split('.')[0]}.py" for reference in references}
    imported = {Path(file) for entry in entries for file in get_relative_import_files(entry)}
    return sorted(entries | imported)


def remote_code_contents(model_dir: str | os.PathLike) -> dict[str, bytes]:
    """Return the files that `add_remote_code` writes, by name: the code, and both configurations with their `auto_map`.

    Raises:
        FileNotFoundError: the directory lacks config.json or preprocessor_config.json.
        ValueError: one of them is not valid JSON, or the model is none of this package's.
    """
    config_class = config_class_of(model_dir)
    auto_maps = {
        "config.json": config_auto_map(config_class),
        "preprocessor_config.json": image_processor_auto_map(config_class),
    }
    configurations = {name: {**_read_json(Path(model_dir) / name), "auto_map": auto_maps[name]} for name in auto_maps}
    return {
        **{file.name: file.read_bytes() for file in code_files(config_class)},
        **{name: (json.dumps(each, indent=2, sort_keys=True) + "\n").encode() for name, each in configurations.items()},
    }


def add_remote_code(model_dir: str | os.PathLike) -> list[str]:
    """Add the model's code to a saved model, which then loads without this package with `trust_remote_code=True`.

    Where this package is imported its own classes are taken, with or without the flag. Code of an earlier call is
    replaced.

    Args:
        model_dir: a directory with config.json, preprocessor_config.json and weights.

    Returns:
        The names of the files written.

    Raises:
        FileNotFoundError, ValueError: see [`remote_code_contents`]; nothing is written then.
    """
    contents = remote_code_contents(model_dir)
    for name, content in contents.items():
        with whole_file(Path(model_dir) / name) as aside:
            aside.write_bytes(content)
    return list(contents)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} is no complete model directory: it has no {path.name}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): save the model again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object: save the model again.")
    return content
