"""SAP-DETR computed as the released code computes it: the baseline of what our cheaper forms save.

Same weights and outputs. The Gaussian is evaluated on all pairs of queries and tokens, the cross-attention has three
parts of d / H per head, and attention weights are materialised.
"""

import torch

from sap_detr_hf.model.modeling_sap_detr import SapDetrForObjectDetection
from sap_detr_hf.model.side_directed_gaussian import SapDetrCrossAttention, SapDetrSideDirectedGaussian


class MaterialisedGaussian(SapDetrSideDirectedGaussian):
    """The exponent from the differences of every query's center and every token, (B, H, N, L, 2)."""

    def forward(self, hidden_states, points, sides, extent, valid, map_size):
        """As [`SapDetrSideDirectedGaussian`]."""
        center, inverse_width = self.place(self.proj(hidden_states), points, sides, extent)  # (B, N, H, 2)
        rows, columns = (torch.arange(size, device=center.device, dtype=torch.float32) + 0.5 for size in map_size)
        keys = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).flatten(0, 1)  # (L, 2) x, y
        difference = keys - center.transpose(1, 2)[..., None, :]  # (B, H, N, L, 2)
        scaled = difference * inverse_width.transpose(1, 2)[..., None, :]
        bias = -scaled.square().sum(-1) / 8  # (B, H, N, L)
        if valid is not None:
            bias = bias.masked_fill(~valid.flatten(2)[:, :, None], torch.finfo(bias.dtype).min)
        return bias


class ThreePartCrossAttention(SapDetrCrossAttention):
    """Per head [content; point; box] against [content; position; position]."""

    def forward(
        self,
        hidden_states,
        point_position,
        box_position,
        point_sine,
        box_sine,
        encoder_hidden_states,
        spatial_position_embeddings,
        position_bias,
        **kwargs,
    ):
        """As [`SapDetrCrossAttention`]."""
        query = self.q_content_proj(hidden_states)
        key = self.k_content_proj(encoder_hidden_states)
        position = self.k_position_proj(spatial_position_embeddings).expand_as(key)
        if self.q_point_proj is not None and self.q_box_proj is not None:
            query = query + self.q_point_proj(point_position) + self.q_box_proj(box_position)
            key = key + position
        queries = (query, self.q_point_sine_proj(point_sine), self.q_box_sine_proj(box_sine))
        return self.attend(
            torch.cat([self.split_heads(part) for part in queries], dim=-1),  # (B, H, N, 3 d / H)
            torch.cat([self.split_heads(part) for part in (key, position, position)], dim=-1),  # (B, H, L, 3 d / H)
            self.split_heads(self.v_proj(encoder_hidden_states)),
            position_bias=position_bias,
            **kwargs,
        )


def released_form(model: SapDetrForObjectDetection) -> SapDetrForObjectDetection:
    """Give a model the released code's way of computing, in place; returns it."""
    model.set_attn_implementation("eager")
    for layer in model.model.decoder.layers:
        layer.gaussian.__class__ = MaterialisedGaussian
        layer.cross_attn.__class__ = ThreePartCrossAttention
    return model
