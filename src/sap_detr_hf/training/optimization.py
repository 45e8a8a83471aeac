# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Optimizer and learning rate of the published recipe: two rates, linear warm-up, one drop; average of the weights."""

import math
from functools import partial

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from sap_detr_cli.settings.train import TrainingSettings


def build_optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.AdamW:
    """Build AdamW with the backbone's own rate; decay on every parameter, as published (biases and norms included)."""
    return torch.optim.AdamW(parameter_groups(model, settings), weight_decay=settings.weight_decay, fused=True)


def parameter_groups(model: nn.Module, settings: TrainingSettings) -> list[dict]:
    """Return the parameters that learn: first all but the backbone's, then the backbone's with their smaller rate.

    Raises:
        ValueError: everything is frozen.
    """
    learning = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    backbone = [parameter for name, parameter in learning if "backbone" in name.split(".")]
    others = [parameter for name, parameter in learning if "backbone" not in name.split(".")]
    groups = [
        {"params": others, "lr": settings.learning_rate},
        {"params": backbone, "lr": settings.backbone_learning_rate},
    ]
    if not learning:
        raise ValueError(f"`freeze` = {settings.freeze} leaves no parameter to train.")
    return [group for group in groups if group["params"]]


def freeze_parameters(model: nn.Module, prefixes: list[str]):
    """Take the gradient from all parameters whose dotted name starts with one of `prefixes`.

    Raises:
        ValueError: a prefix that no parameter has.
    """
    for prefix in prefixes:
        chosen = [p for name, p in model.named_parameters() if f"{name}.".startswith(f"{prefix.rstrip('.')}.")]
        if not chosen:
            modules = ", ".join(name for name, _ in model.named_modules() if name and name.count(".") < 2)
            raise ValueError(f"`freeze` names `{prefix}`, but no parameter starts with it; there are: {modules}.")
        for parameter in chosen:
            parameter.requires_grad_(False)


def build_scheduler(
    optimizer: torch.optim.Optimizer, settings: TrainingSettings, steps_per_epoch: int, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Build the learning rate by optimizer step, for all groups."""
    factor = partial(learning_rate_factor, settings=settings, steps_per_epoch=steps_per_epoch, total_steps=total_steps)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def learning_rate_factor(step: int, settings: TrainingSettings, steps_per_epoch: int, total_steps: int) -> float:
    """Return the factor of the rates in optimizer step `step` (the first is 0).

    Warm-up runs linearly from `warmup_start` to 1 and multiplies the schedule, so a drop inside it still counts.
    """
    warmup = 1.0
    if step < settings.warmup_steps:
        warmup = settings.warmup_start + (1 - settings.warmup_start) * step / settings.warmup_steps
    if settings.schedule == "step":
        return warmup * (settings.drop_factor if step >= settings.drop_epoch * steps_per_epoch else 1.0)
    if settings.schedule == "cosine":
        span = max(total_steps - settings.warmup_steps, 1)
        progress = min(max(step - settings.warmup_steps, 0) / span, 1.0)
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return warmup * (settings.drop_factor + (1 - settings.drop_factor) * cosine)
    return warmup


def average_weights(model: nn.Module, decay: float) -> AveragedModel:
    """Copy `model` for an exponential moving average of its weights, by torch's own `AveragedModel`.

    Call `update_parameters(model)` after each step and evaluate its `.module`.

    The decay grows as (1 + n) / (10 + n) up to `decay`, as in TensorFlow's ExponentialMovingAverage, so that the
    average forgets the random initial weights within the first steps. Buffers (BatchNorm statistics) are copied.
    """

    @torch.no_grad()
    def update(averages, weights, _):
        updates = averaged.n_averaged.item()  # lies on the CPU; the argument is a copy on the weights' device
        torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + updates) / (10 + updates)))

    averaged = AveragedModel(model, multi_avg_fn=update)
    averaged.requires_grad_(False)
    return averaged.eval()
