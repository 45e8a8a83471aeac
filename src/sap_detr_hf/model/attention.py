# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Shared code of SAP-DETR's attention layers: heads, transformers' attention interface, the additive position bias."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_sap_detr import SapDetrConfig
from .initialization import initialized


def additive_mask(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Bool, True = visible -> what to add to an attention's logits: 0 there, the lowest number elsewhere."""
    return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    position_bias: torch.Tensor | None = None,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain attention, (B, H, N, ·) in and (B, N, H, ·) out; mask and bias are added to the logits."""
    weights = query @ key.transpose(2, 3) * scaling
    for bias in (attention_mask, position_bias):
        if bias is not None:
            weights = weights + bias
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class SapDetrAttentionBase(nn.Module):
    """Base class of the three attention layers: heads, the attention interface, the output projection."""

    def __init__(self, config: SapDetrConfig, num_heads: int, scaling: float):
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.scaling = scaling
        self.is_causal = False
        self.out_proj = self.projection("xavier_zero_bias")

    def projection(self, rule: str = "xavier", in_width: int | None = None) -> nn.Linear:
        """A linear layer to the model's width, initialized by a rule."""
        d_model = self.config.d_model
        return initialized(nn.Linear(in_width or d_model, d_model), rule)  # type: ignore[return-value]

    def split_heads(self, states: torch.Tensor) -> torch.Tensor:
        """(B, L, d) -> (B, H, L, d / H)."""
        return states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Heads already split, (B, H, ·, ·) -> (B, N, d) and the attention weights where the interface has them."""
        interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.config.attention_dropout if self.training else 0.0
        width = value.shape[-1]
        if query.device.type == "cpu" and self.config._attn_implementation == "sdpa":
            # PyTorch's fused kernel for CPUs takes values as wide as the keys only, and keeps no weights in memory.
            value = nn.functional.pad(value, (0, key.shape[-1] - width))
        output, weights = interface(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.scaling,
            dropout=dropout,
            position_bias=position_bias,
            **kwargs,
        )
        return self.out_proj(output[..., :width].flatten(2)), weights


def attend_apart(
    attention: SapDetrAttentionBase,
    projected: tuple[torch.Tensor, ...],
    num_queries: int,
    denoising_mask: torch.Tensor | None,
    attention_mask: torch.Tensor | None = None,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Self-attention of each group among itself, and of the denoising queries as their mask allows.

    Args:
        projected: queries, keys and values, (B, G * N + S, d) each.
        num_queries: N.
        denoising_mask: (B, 1, S, S), added to the logits; `None` without denoising queries.
        attention_mask: added to the logits of the groups.

    Returns:
        (B, G * N + S, d), and the weights of the groups, (B * G, H, N, N), where the attention interface has them.
    """
    denoising = 0 if denoising_mask is None else denoising_mask.shape[-1]
    matched = projected[0].shape[1] - denoising
    groups = (each[:, :matched].unflatten(1, (-1, num_queries)).flatten(0, 1) for each in projected)  # (B * G, N, d)
    query, key, value = map(attention.split_heads, groups)
    attended, weights = attention.attend(query, key, value, attention_mask, **kwargs)
    attended = attended.unflatten(0, (len(projected[0]), -1)).flatten(1, 2)
    if denoising_mask is not None:
        query, key, value = (attention.split_heads(each[:, matched:]) for each in projected)
        noisy, _ = attention.attend(query, key, value, denoising_mask, **kwargs)
        attended = torch.cat([attended, noisy], dim=1)
    return attended, weights


class SapDetrSelfAttention(SapDetrAttentionBase):
    """Self-attention whose queries and keys are the states with positions added; the values are the states alone."""

    def __init__(self, config: SapDetrConfig, num_heads: int):
        super().__init__(config, num_heads, scaling=(config.d_model // num_heads) ** -0.5)
        self.q_proj = self.projection("fused_xavier_zero_bias")
        self.k_proj = self.projection("fused_xavier_zero_bias")
        self.v_proj = self.projection("fused_xavier_zero_bias")

    def forward(
        self,
        hidden_states: torch.Tensor,
        positions: torch.Tensor,
        attention_mask: torch.Tensor | None,
        denoising_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, L, d) both; the masks are added to the logits, see [`attend_apart`]."""
        placed = hidden_states + positions  # (B, L, d)
        projected = self.q_proj(placed), self.k_proj(placed), self.v_proj(hidden_states)
        if denoising_mask is not None:
            num_queries = hidden_states.shape[1] - denoising_mask.shape[-1]
            return attend_apart(self, projected, num_queries, denoising_mask, attention_mask, **kwargs)
        query, key, value = map(self.split_heads, projected)
        return self.attend(query, key, value, attention_mask, **kwargs)
