# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""The data sets of the comparison, each with the training settings that all detectors share on it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from sap_detr_hf.demo.digits import DigitSource, digit_sources, make_digits

SHARED: dict[str, Any] = {
    "freeze": ["model.backbone"],
    "schedule": "cosine",
    "drop_factor": 0.02,
    "effective_batch": 8,
    "images_per_device": 8,
    "evaluation_batch_size": 8,
    "channels_last": True,
    "workers": 0,
    "keep_checkpoints": 1,
}
DATA_SETS: dict[str, dict[str, Any]] = {
    # 300 pictures with 3 to 12 digits of 15 to 70 pixels. A mirrored digit is another sign, so nothing is flipped.
    "digits": {
        "augmentation": "none", "shortest_edge": 192, "longest_edge": 192, "epochs": 12, "warmup_steps": 100,
        "effective_batch": 4, "images_per_device": 4,
    },
    # 205 photographs of blood cells: small batches, for 15 epochs of larger ones are too few steps for any detector
    "bccd": {
        "augmentation": "flip", "shortest_edge": 240, "longest_edge": 320, "epochs": 15, "warmup_steps": 100,
        "effective_batch": 4, "images_per_device": 4,
    },
    # 36 pictures with 10 to 40 digits of 20 to 40 pixels, all of one class; 500 steps. Detectors learn so few pictures
    # by heart: AP is measured every 50 steps, and the best of them counts.
    "small-objects": {
        "augmentation": "flip", "shortest_edge": 400, "longest_edge": 400, "epochs": 56, "max_steps": 500,
        "warmup_steps": 50, "effective_batch": 4, "images_per_device": 4, "evaluation_steps": 50,
        "evaluation_epochs": 0, "checkpoint_epochs": 0, "checkpoint_steps": 50,
    },
}  # fmt: skip


def shared_settings(name: str) -> dict[str, Any]:
    """The settings of all trainings on one of `DATA_SETS`."""
    return {**SHARED, **DATA_SETS[name]}


def make_comparison_digits(folder: Path) -> None:
    """Write the digits: pictures of 192 pixels with 3 to 12 digits each."""
    many: dict[str, Any] = {"digits_per_image": (3, 12), "digit_height": (0.08, 0.36)}
    sources = {split: replace(source, **many) for split, source in digit_sources(0).items()}
    make_digits(folder, train=300, val=100, size=(192, 192), sources=sources)


def make_small_objects(folder: Path) -> None:
    """Write the small objects: 36 pictures on one photograph, validation pictures on another; one class."""
    small: dict[str, Any] = {"digits_per_image": (10, 40), "digit_height": (0.05, 0.10)}
    sources: dict[str, DigitSource] = {}
    for (split, source), photograph in zip(digit_sources(0).items(), (0, 1), strict=True):
        sources[split] = replace(source, photographs=[source.photographs[photograph]], **small)
    for path in make_digits(folder, train=36, val=40, size=(400, 400), sources=sources).values():
        content = json.loads(path.read_text(encoding="utf-8"))
        content["categories"] = [{"id": 1, "name": "digit"}]
        for annotation in content["annotations"]:
            annotation["category_id"] = 1
        path.write_text(json.dumps(content), encoding="utf-8")


MADE = {"digits": make_comparison_digits, "small-objects": make_small_objects}


def data_folder(name: str, given: Path | None, work: Path) -> Path:
    """The folder of a data set: made here, or the one the user names.

    Raises:
        ValueError: a data set that cannot be made, without a folder.
    """
    if given is not None:
        return given
    if name not in MADE:
        raise ValueError(f"{name} is not made here: name its folder with --data.")
    folder = work / "data"
    if not (folder / "annotations" / "instances_val.json").exists():  # its last file
        MADE[name](folder)
    return folder
