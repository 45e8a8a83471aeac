# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Groups of queries in training, as in Group DETR (arXiv 2207.13085): each is matched to the boxes by itself.

A box so teaches as many queries. The groups share grid, weights and content and differ by the sides that their boxes
start from. In evaluation the first group is the whole model. Letters in shape comments: B images, N queries, G groups,
S denoising queries, d model width, H heads.
"""

import torch
from torch import nn

from .attention import SapDetrAttentionBase
from .configuration_sap_detr import SapDetrConfig
from .initialization import initialised
from .salient_points import SapDetrQuerySides

START_NOISE = 0.5


class SapDetrQueryGroups(nn.Module):
    """What the groups behind the first one have of their own: box sides and, on request, an addition to the content."""

    def __init__(self, config: SapDetrConfig):
        super().__init__()
        assert config.num_queries is not None
        self.num_groups = config.num_groups
        self.sides = SapDetrQuerySides((config.num_groups - 1) * config.num_queries, 4)
        self.content = nn.Embedding(config.num_groups - 1, config.d_model) if config.group_content else None
        if self.content is not None:
            initialised(self.content, "group_content")

    @torch.no_grad()
    def start_near(self, sides: nn.Embedding):
        """Begin at the first group's sides, with noise: equal groups would stay equal for ever."""
        copies = sides.weight.repeat(self.num_groups - 1, 1)
        self.sides.weight.copy_(copies + START_NOISE * torch.randn_like(copies))

    def forward(self, content: torch.Tensor, sides: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Content (B, N, d) and sides (N, 4) of the first group -> (B, G * N, d) and (G * N, 4) of all."""
        contents = [content] * self.num_groups
        if self.content is not None:
            contents[1:] = [content + added.to(content.dtype) for added in self.content.weight]
        return torch.cat(contents, dim=1), torch.cat([sides, self.sides()])


def attend_apart(
    attention: SapDetrAttentionBase,
    projected: tuple[torch.Tensor, ...],
    num_queries: int,
    denoising_mask: torch.Tensor | None,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Self-attention of each group among itself, and of the denoising queries as their mask allows.

    Args:
        attention: has the heads and the output projection.
        projected: queries, keys and values, (B, G * N + S, d) each.
        num_queries: N.
        denoising_mask: (B, 1, S, S), added to the logits; `None` without denoising queries.

    Returns:
        (B, G * N + S, d), and the weights of the groups, (B * G, H, N, N), where the attention interface has them.
    """
    denoising = 0 if denoising_mask is None else denoising_mask.shape[-1]
    matched = projected[0].shape[1] - denoising
    groups = (each[:, :matched].unflatten(1, (-1, num_queries)).flatten(0, 1) for each in projected)  # (B * G, N, d)
    attended, weights = attention.attend(*map(attention.split_heads, groups), **kwargs)
    attended = attended.unflatten(0, (len(projected[0]), -1)).flatten(1, 2)
    if denoising_mask is not None:
        query, key, value = (attention.split_heads(each[:, matched:]) for each in projected)
        noisy, _ = attention.attend(query, key, value, denoising_mask, **kwargs)
        attended = torch.cat([attended, noisy], dim=1)
    return attended, weights
