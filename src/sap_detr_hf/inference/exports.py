"""Exported files that predict and evaluate in a model's place."""

import sys
from pathlib import Path
from typing import Any

from sap_detr_cli.settings.evaluate import EvaluationSettings
from sap_detr_cli.settings.export import SUFFIXES
from sap_detr_cli.settings.predict import PredictionSettings

from ..export.exported import ExportedModel


def exported_file(name: str) -> Path | None:
    """The exported file that a name means: the file, or the only one in a directory; `None` for a saved model."""
    path = Path(name)
    if path.suffix in SUFFIXES.values() and not path.is_dir():
        return path
    if not path.is_dir() or (path / "config.json").exists():
        return None
    found = [file for file in sorted(path.iterdir()) if file.suffix in SUFFIXES.values()]
    return found[0] if len(found) == 1 else None


def load_exported(settings: PredictionSettings | EvaluationSettings) -> tuple[ExportedModel, Any] | None:
    """The exported model that settings name, and its image processor; `None` where they name a saved model.

    Raises:
        OSError, ImportError, ValueError: see [`ExportedModel`]; or a device or type that exported models do not have.
    """
    path = exported_file(settings.model)
    if path is None:
        return None
    if Path(settings.model).is_dir():
        print(f"{settings.model} is no saved model: the export in it, {path.name}, is used", file=sys.stderr)
    if settings.device == "cuda" or settings.dtype != "float32":
        raise ValueError(f"{path} runs on the CPU in float32: leave out --device and --dtype, or name a saved model.")
    model = ExportedModel(path, trust_pt2=settings.trust_pt2)
    return model, model.image_processor
