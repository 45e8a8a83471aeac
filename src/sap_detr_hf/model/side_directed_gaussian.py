# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""The side-directed Gaussian (paper, section 3.3) and the cross-attention that it steers.

Letters in shape comments as in `modeling_sap_detr.py`: B images, N queries, L = h * w tokens, d width, H heads.
"""

import torch
from torch import nn

from .attention import SapDetrAttentionBase
from .configuration_sap_detr import SapDetrConfig
from .feed_forward import SapDetrMLP


class SapDetrSideDirectedGaussian(nn.Module):
    """Side-directed Gaussian (paper, section 3.3): each head looks from the point towards one side of the box.

    The exponent separates over x and y, so that (B, H, N, w) and (B, H, N, h) are computed and added, and nothing of
    shape (queries, tokens, 2) ever exists.
    """

    def __init__(self, config: SapDetrConfig):
        super().__init__()
        self.num_heads = config.decoder_attention_heads
        self.proj = SapDetrMLP([config.d_model] * 3 + [4 * self.num_heads], rule="xavier")

    def forward(
        self,
        hidden_states: torch.Tensor,
        points: torch.Tensor,
        sides: torch.Tensor,
        extent: torch.Tensor,
        valid: torch.Tensor | None,
        map_size: tuple[int, int],
    ) -> torch.Tensor:
        """Additive bias of the cross-attention logits.

        Args:
            hidden_states: (B, N, d).
            points, sides: (B, N, 2) and (B, N, 4) in [0, 1] of the extent.
            extent: (B or 1, 1, 1, 2) width and height in feature-map pixels that points and sides refer to.
            valid: (B, 1, h, w) bool, `None` for all.
            map_size: h, w of the feature map.

        Returns:
            (B, H, N, h * w) in the dtype of `hidden_states`' projections.
        """
        projected = self.proj(hidden_states)
        center, inverse_width = (part.transpose(1, 2) for part in self.place(projected, points, sides, extent))
        gaussian_y, gaussian_x = (
            self.exponent(center[..., axis], inverse_width[..., axis], size, projected.dtype)
            for axis, size in ((1, map_size[0]), (0, map_size[1]))
        )
        bias = gaussian_y[..., :, None] + gaussian_x[..., None, :]  # (B, H, N, h, w)
        if valid is not None:
            bias = bias.masked_fill_(~valid[:, None], torch.finfo(bias.dtype).min)
        return bias.flatten(3)

    def place(
        self, projected: torch.Tensor, points: torch.Tensor, sides: torch.Tensor, extent: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Center and inverse width x, y of each head's Gaussian in feature-map pixels, (B, N, H, 2) float32 both."""
        offset, inverse_width = projected.float().unflatten(-1, (2, self.num_heads, 2)).unbind(2)
        offset = offset.tanh()
        left_top, right_bottom = sides[:, :, None].split(2, dim=-1)  # (B, N, 1, 2)
        center = points[:, :, None] + offset * torch.where(offset > 0, right_bottom, left_top)
        return center * extent, inverse_width

    @staticmethod
    def exponent(center: torch.Tensor, inverse_width: torch.Tensor, size: int, dtype: torch.dtype) -> torch.Tensor:
        """-((key - center) * inverse_width)^2 / 8 along one axis: (B, H, N) -> (B, H, N, size)."""
        keys = torch.arange(size, device=center.device, dtype=torch.float32) + 0.5
        exponent = ((keys - center[..., None]) * inverse_width[..., None]).square() * -0.125
        if dtype in (torch.float16, torch.bfloat16):
            # A softmax ignores a constant: with the nearest key at 0, no row can overflow to -inf in half precision.
            exponent = exponent - exponent.amax(-1, keepdim=True).detach()
            exponent = exponent.clamp(min=torch.finfo(dtype).min / 4)
        return exponent.to(dtype)


class SapDetrCrossAttention(SapDetrAttentionBase):
    """Cross-attention with separate content and position halves per head and the side-directed Gaussian.

    The released code gives each head three parts of d / H: `[content; point; box]` against `[content; key; key]`.
    Both position parts meet the same key, so their sum against one key is the same number;
    the scale stays 1 / sqrt(3 d / H).
    """

    def __init__(self, config: SapDetrConfig, is_first: bool):
        heads = config.decoder_attention_heads
        super().__init__(config, heads, scaling=(3 * config.d_model // heads) ** -0.5)
        self.q_content_proj = self.projection()
        self.k_content_proj = self.projection()
        self.k_position_proj = self.projection()
        self.v_proj = self.projection()
        self.q_point_sine_proj = self.projection()
        self.q_box_sine_proj = self.projection(in_width=2 * config.d_model)
        self.q_point_proj = self.projection() if is_first else None
        self.q_box_proj = self.projection() if is_first else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        point_position: torch.Tensor,
        box_position: torch.Tensor,
        point_sine: torch.Tensor,
        box_sine: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        spatial_position_embeddings: torch.Tensor,
        position_bias: torch.Tensor | None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return (B, N, d), and the weights (B, H, N, L) where the implementation gives them.

        Args:
            hidden_states, point_position, box_position, point_sine: (B, N, d).
            box_sine: (B, N, 2 d).
            encoder_hidden_states: (B, L, d).
            spatial_position_embeddings: (B or 1, L, d).
            position_bias: (B, H, N, L) from [`SapDetrSideDirectedGaussian`].
        """
        query = self.q_content_proj(hidden_states)  # (B, N, d)
        key = self.k_content_proj(encoder_hidden_states)  # (B, L, d)
        key_position = self.k_position_proj(spatial_position_embeddings)  # (B or 1, L, d)
        if self.q_point_proj is not None and self.q_box_proj is not None:
            query = query + self.q_point_proj(point_position) + self.q_box_proj(box_position)
            key = key + key_position
        query_position = self.q_point_sine_proj(point_sine) + self.q_box_sine_proj(box_sine)  # (B, N, d)
        key_position = key_position.expand_as(key)
        return self.attend(
            torch.cat([self.split_heads(query), self.split_heads(query_position)], dim=-1),  # (B, H, N, 2 d / H)
            torch.cat([self.split_heads(key), self.split_heads(key_position)], dim=-1),  # (B, H, L, 2 d / H)
            self.split_heads(self.v_proj(encoder_hidden_states)),  # (B, H, L, d / H)
            position_bias=position_bias,
            **kwargs,
        )
