# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Exponential moving average of the weights, by torch's own `AveragedModel`."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


def average_weights(model: nn.Module, decay: float) -> AveragedModel:
    """An averaged copy of `model`: call `update_parameters(model)` after each step, evaluate its `.module`.

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
