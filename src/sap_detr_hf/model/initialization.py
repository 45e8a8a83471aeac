# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Initial weights of the released code: PyTorch's defaults, and these exceptions, marked on the layers themselves."""

import math

from torch import nn
from transformers import initialization as init

PRIOR_BIAS = -math.log(99)  # a class or object is predicted with probability 0.01 at first


def initialized(module: nn.Module, rule: str) -> nn.Module:
    """Mark a leaf module for `_init_weights`: transformers visits only leaves of models outside its own tree."""
    module.sap_init = rule  # type: ignore[assignment]
    return module


def apply_init_rule(module: nn.Module, rule: str) -> None:
    """The released code's exceptions from PyTorch's defaults."""
    if "xavier" in rule:
        # The released encoder draws q, k, v as one (3d, d) matrix, whose Xavier bound is smaller by sqrt(2).
        init.xavier_uniform_(module.weight, gain=2**-0.5 if rule.startswith("fused") else 1.0)
    if rule == "group_content":
        init.normal_(module.weight, std=0.02)
    if rule == "content_convolution":
        init.normal_(module.weight, std=0.01)
    if rule == "zero":
        init.zeros_(module.weight)
    if rule in ("zero", "content_convolution") or rule.endswith("zero_bias"):
        init.zeros_(module.bias)
    if rule == "prior":
        init.constant_(module.bias, PRIOR_BIAS)
