"""The model's code beside its weights, so that a model loads with `trust_remote_code=True` where no package is."""

import json
import os
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files

from ..files import whole_file
from ..model.configuration_sap_detr import SapDetrConfig

# What the Auto classes of transformers are told; `AutoImageProcessor` takes the backend that the machine has.
CONFIG_AUTO_MAP = {
    "AutoConfig": "configuration_sap_detr.SapDetrConfig",
    "AutoModel": "modeling_sap_detr.SapDetrModel",
    "AutoModelForObjectDetection": "modeling_sap_detr.SapDetrForObjectDetection",
}
IMAGE_PROCESSOR_AUTO_MAP = {
    "AutoImageProcessor": {
        "torchvision": "image_processing_sap_detr.SapDetrImageProcessor",
        "pil": "image_processing_pil_sap_detr.SapDetrImageProcessorPil",
    }
}


def code_files() -> list[Path]:
    """The package's files that the Auto classes name and, by transformers' own reading, all that these import."""
    package = Path(__file__).parents[1] / "model"
    references = [*CONFIG_AUTO_MAP.values(), *IMAGE_PROCESSOR_AUTO_MAP["AutoImageProcessor"].values()]
    entries = {package / f"{reference.split('.')[0]}.py" for reference in references}
    imported = {Path(file) for entry in entries for file in get_relative_import_files(entry)}
    return sorted(entries | imported)


def remote_code_contents(model_dir: str | os.PathLike) -> dict[str, bytes]:
    """What `add_remote_code` writes, by file name: the code, and both configurations with their `auto_map`.

    Raises:
        FileNotFoundError: the directory lacks config.json or preprocessor_config.json.
        ValueError: one of them is not valid JSON, or the model is no SAP-DETR.
    """
    config = _read_json(Path(model_dir) / "config.json")
    if config.get("model_type") != SapDetrConfig.model_type:
        raise ValueError(
            f"{model_dir} holds a model of type {config.get('model_type')!r}: only {SapDetrConfig.model_type!r} models "
            "can be given this package's code."
        )
    image_processor = _read_json(Path(model_dir) / "preprocessor_config.json")
    return {
        **{file.name: file.read_bytes() for file in code_files()},
        "config.json": _json_bytes({**config, "auto_map": CONFIG_AUTO_MAP}),
        "preprocessor_config.json": _json_bytes({**image_processor, "auto_map": IMAGE_PROCESSOR_AUTO_MAP}),
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


def _json_bytes(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
