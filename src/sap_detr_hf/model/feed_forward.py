# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Linear layers with an activation between them, alone and as a transformer's feed-forward layer."""

from itertools import pairwise

import torch
from torch import nn
from transformers.activations import ACT2FN

from .configuration_sap_detr import SapDetrConfig
from .initialization import initialized


class SapDetrMLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, widths: list[int], rule: str = "default", last_rule: str | None = None):
        super().__init__()
        self.layers = nn.ModuleList(initialized(nn.Linear(a, b), rule) for a, b in pairwise(widths))
        initialized(self.layers[-1], last_rule or rule)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., widths[0]) -> (..., widths[-1])."""
        for layer in self.layers[:-1]:
            hidden_states = layer(hidden_states).relu()
        return self.layers[-1](hidden_states)


class SapDetrFeedForward(nn.Module):
    """Two linear layers with the residual and the norm after it."""

    def __init__(self, config: SapDetrConfig, ffn_dim: int):
        super().__init__()
        self.fc1 = initialized(nn.Linear(config.d_model, ffn_dim), "xavier")
        self.fc2 = initialized(nn.Linear(ffn_dim, config.d_model), "xavier")
        self.activation = ACT2FN[config.activation_function]
        self.dropout = nn.Dropout(config.dropout)
        self.layer_norm = nn.LayerNorm(config.d_model)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, L, d) -> (B, L, d)."""
        update = self.fc2(self.dropout(self.activation(self.fc1(hidden_states))))
        return self.layer_norm(hidden_states + self.dropout(update))
