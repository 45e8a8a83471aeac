# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""The origin of a training state: its data, model and settings, and what a run that resumes it may change."""

import json
import zlib
from dataclasses import asdict
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from sap_detr_cli.settings.train import TrainingSettings

from ..data.dataset import DetectionData

# These decide which image comes in which step, or which tensors the state holds.
FIXED = ("effective_batch", "training images", "checksum of the image ids", "seed", "drop_last", "ema")
START = ("model", "init_from", "variant", "backbone_weights", "ignore_mismatched_sizes", "class_mapping")
ADVICE = "resume with the settings.yaml of its run, or start a new run in another `output_dir`."


def describe_origin(settings: TrainingSettings, data: DetectionData, model: PreTrainedModel) -> dict[str, Any]:
    """Describe a run by plain values that its training states carry.

    Args:
        model: with its initial weights, and its frozen parameters frozen.
    """
    image_ids = ",".join(map(str, data.dataset["image_id"][:]))
    other = {name: value for name, value in asdict(settings).items() if name not in ("output_dir", "resume")}
    return {
        "effective_batch": settings.effective_batch,
        "training images": len(data.dataset),
        "checksum of the image ids": zlib.crc32(image_ids.encode()),
        "seed": settings.seed,
        "drop_last": settings.drop_last,
        "ema": bool(settings.ema_decay),
        "settings": other,
        "config": _model_fields(model.config),
        "learning": [name for name, parameter in model.named_parameters() if parameter.requires_grad],
        "initial weights": _checksum(model),
    }


def compare_origins(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Compare a state's origin with that of the run that resumes it.

    Returns:
        Settings that differ, as "name old -> new": the run applies the new value from its next step on.

    Raises:
        ValueError: a difference that cannot be applied; names both values.
    """
    if missing := now.keys() - saved.keys():
        raise ValueError(f"The checkpoint does not say its {', '.join(sorted(missing))}: start a new run.")
    for name in FIXED:
        if saved[name] != now[name]:
            raise _refusal(f"was trained with {name} = {saved[name]}", str(now[name]))
    before, after = saved["settings"], now["settings"]
    # A newer version of transformers or this package may have fields that the state does not know: their defaults.
    defaults = _model_fields(AutoConfig.for_model(now["config"]["model_type"]))
    for name, old, new in _differences({**defaults, **saved["config"]}, now["config"]):
        raise _refusal(f"holds a model with {name} = {old!r}", f"{new!r}")
    if saved["learning"] != now["learning"]:
        raise _refusal(
            f"was trained with `freeze` = {before['freeze']}, which leaves {len(saved['learning'])} parameter tensors "
            "to the optimizer",
            f"`freeze` = {after['freeze']}, which leaves {len(now['learning'])}",
        )
    if saved["initial weights"] != now["initial weights"]:
        for name in START:
            if before.get(name) != after[name]:
                raise _refusal(
                    f"was started from {name} = {before.get(name)}", f"{after[name]}, which has other weights"
                )
    return [f"{name} {before[name]} -> {after[name]}" for name in before if before[name] != after.get(name)]


def _refusal(then: str, now: str) -> ValueError:
    return ValueError(f"The checkpoint {then}, this run has {now}: {ADVICE}")


def _differences(then: Any, now: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(then, dict) and isinstance(now, dict):
        names = dict.fromkeys([*then, *now])
        pairs = [(f"{name}.{key}" if name else key, then.get(key), now.get(key)) for key in names]
        return [found for path, old, new in pairs for found in _differences(old, new, path)]
    return [] if then == now else [(name, then, now)]


def _model_fields(config: PreTrainedConfig) -> dict[str, Any]:
    return _without_names(json.loads(config.to_json_string(use_diff=False)))


def _without_names(fields: dict[str, Any]) -> dict[str, Any]:
    """Drop the fields that do not change the model."""
    dropped = ("transformers_version", "_name_or_path", "dtype", "architectures", "label2id")
    kept = {key: value for key, value in fields.items() if key not in dropped}
    return {key: _without_names(value) if isinstance(value, dict) else value for key, value in kept.items()}


def _checksum(model: PreTrainedModel) -> int:
    checksum = 0
    for tensor in model.state_dict().values():
        values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        checksum = zlib.crc32(values.numpy(), checksum)
    return checksum
