# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Groups of queries in training, as in Group DETR (arXiv 2207.13085): each group is matched to the boxes separately.

Each box thus supervises one query per group. The groups share grid, weights and content; they differ in the initial
sides of their boxes. Evaluation uses only the first group. Letters in shape comments: B images, N queries, G groups, S
denoising queries, d model width, H heads.
"""

import torch
from torch import nn

from .configuration_sap_detr import SapDetrConfig
from .initialization import initialized
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
            initialized(self.content, "group_content")

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
