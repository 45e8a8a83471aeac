# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Find the cause of a NaN or infinite loss: a second forward pass with hooks names the first bad tensor."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves


class TrainingFailed(Exception):
    """The run cannot continue; raised on all processes with the same one-sentence message."""


def first_bad_tensor(model: nn.Module, batch: dict[str, Any], with_loss: bool = True, **arguments) -> str:
    """Name the first tensor with NaN or infinity: input, weight, module output, loss part or gradient, in this order.

    Args:
        model: without the wrapper of several processes, so that one process can call it alone.
        batch: `pixel_values`, `pixel_mask`, `labels`.
        with_loss: also look at the loss; its parts are skipped otherwise.
        arguments: further arguments of the forward pass.
    """
    for name, tensor in _inputs(batch):
        if not _finite(tensor):
            return f"the input {name}"
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not _finite(tensor):
            return f"the weight {name}"
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), _watched(model) as bad:
        given = batch if with_loss else {name: value for name, value in batch.items() if name != "labels"}
        loss_dict = model(**given, **arguments).loss_dict or {}
    if bad:
        return f"the output of {bad[0]}"
    for name, value in loss_dict.items():
        if not _finite(value):
            return f"the loss part {name}"
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not _finite(parameter.grad):
            return f"the gradient of {name}"
    return "not found in a second forward pass (a chance event of dropout, of denoising noise or of hardware)"


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[str]]:
    """Collect the names of modules with a bad output, in the order in which they finish."""
    bad: list[str] = []

    def watch(name: str):
        def hook(module, arguments, output):
            if not all(map(_finite, tree_leaves(output))):
                bad.append(name)

        return hook

    hooks = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        yield bad
    finally:
        for hook in hooks:
            hook.remove()


def _inputs(batch: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    yield "pixel_values", batch["pixel_values"]
    for index, label in enumerate(batch["labels"]):
        yield f"boxes of image {int(label['image_id'])} (number {index} of the batch)", label["boxes"]


def _finite(value: Any) -> bool:
    """Whether a tensor has no NaN or infinity; true of whole numbers and of what is no tensor."""
    return not (isinstance(value, torch.Tensor) and value.is_floating_point()) or bool(value.isfinite().all())
