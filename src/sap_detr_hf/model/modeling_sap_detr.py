# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""SAP-DETR: DETR with salient points (paper: CVPR 2023, arXiv 2211.02006; released code: liuyang-ict/SAP-DETR).

Reading order: `SapDetrForObjectDetection.forward` -> `SapDetrModel.forward` -> `SapDetrDecoder.forward` ->
`SapDetrDecoderLayer.forward`. Letters in shape comments: B images, N queries, L = h * w tokens of the feature map,
d model width, H heads, K classes, D decoder layers. Positions are x, y in [0, 1]; box sides are the distances
left, top, right, bottom from a point to the sides of its box, in the same units.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention import SapDetrAttentionBase, SapDetrSelfAttention, additive_mask, attend_apart
from .backbone import build_backbone
from .configuration_sap_detr import SapDetrConfig
from .denoising import DenoisingQueries, denoising_loss, denoising_queries
from .feed_forward import SapDetrFeedForward, SapDetrMLP
from .initialization import initialized
from .loss import check_labels, normalizer, sap_detr_loss
from .outputs import SapDetrDecoderOutput, SapDetrModelOutput, SapDetrObjectDetectionOutput
from .positions import sine_embedding, spatial_position_embedding, valid_counts, valid_tokens
from .pretrained_model import SapDetrPreTrainedModel
from .query_groups import SapDetrQueryGroups
from .salient_points import (
    SapDetrQueryContent,
    SapDetrQuerySides,
    SapDetrReferencePoints,
    box_corners,
    boxes_from_sides,
    cell_corners,
    from_cells,
    in_cells,
    logit,
    start_points,
)
from .side_directed_gaussian import SapDetrCrossAttention, SapDetrSideDirectedGaussian

# --- Positions -------------------------------------------------------------------------------------------------------


@dataclass
class TokenRegion:
    """Which tokens belong to the images.

    Args:
        mask: (B, 1, h, w) bool, True = valid; `None` when all are.
        extent: (B or 1, 1, 1, 2) width and height in feature-map pixels that points and sides refer to.
        share: (B, 1, 2) the extent as a share of the map's width and height; `None` when it is the whole map.
    """

    mask: torch.Tensor | None
    extent: torch.Tensor
    share: torch.Tensor | None


# --- Encoder ---------------------------------------------------------------------------------------------------------


class SapDetrEncoderLayer(GradientCheckpointingLayer):
    """Post-norm encoder layer whose positions are scaled by the content."""

    def __init__(self, config: SapDetrConfig):
        super().__init__()
        self.position_scale = SapDetrMLP([config.d_model] * 3, rule="xavier")
        self.self_attn = SapDetrSelfAttention(config, config.encoder_attention_heads)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.ffn = SapDetrFeedForward(config, config.encoder_ffn_dim)

    def forward(
        self,
        hidden_states: torch.Tensor,
        spatial_position_embeddings: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """(B, L, d) -> (B, L, d)."""
        positions = spatial_position_embeddings * self.position_scale(hidden_states)
        attended, _ = self.self_attn(hidden_states, positions, attention_mask, **kwargs)
        hidden_states = self.self_attn_layer_norm(hidden_states + self.dropout(attended))
        return self.ffn(hidden_states)


# --- Decoder ---------------------------------------------------------------------------------------------------------


class SapDetrDecoderSelfAttention(SapDetrAttentionBase):
    """Self-attention over the queries; points and boxes have projections of their own on both sides."""

    def __init__(self, config: SapDetrConfig):
        heads = config.decoder_attention_heads
        super().__init__(config, heads, scaling=(config.d_model // heads) ** -0.5)
        for side in ("q", "k"):
            for part in ("content", "point", "box"):
                setattr(self, f"{side}_{part}_proj", self.projection())
        self.v_proj = self.projection()

    def forward(
        self,
        hidden_states: torch.Tensor,
        point_position: torch.Tensor,
        box_position: torch.Tensor,
        denoising_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query = self.q_content_proj(hidden_states) + self.q_point_proj(point_position) + self.q_box_proj(box_position)
        key = self.k_content_proj(hidden_states) + self.k_point_proj(point_position) + self.k_box_proj(box_position)
        value = self.v_proj(hidden_states)  # all (B, N, d)
        if hidden_states.shape[1] > self.config.num_queries:
            return attend_apart(self, (query, key, value), self.config.num_queries, denoising_mask, **kwargs)
        return self.attend(self.split_heads(query), self.split_heads(key), self.split_heads(value), **kwargs)


class SapDetrDecoderLayer(GradientCheckpointingLayer):
    """Post-norm decoder layer: self-attention, Gaussian-biased cross-attention, feed-forward."""

    def __init__(self, config: SapDetrConfig, is_first: bool):
        super().__init__()
        self.self_attn = SapDetrDecoderSelfAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.gaussian = SapDetrSideDirectedGaussian(config) if config.side_directed_gaussian else None
        self.cross_attn = SapDetrCrossAttention(config, is_first)
        self.cross_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.ffn = SapDetrFeedForward(config, config.decoder_ffn_dim)

    def forward(
        self,
        hidden_states: torch.Tensor,
        points: torch.Tensor,
        sides: torch.Tensor,
        point_position: torch.Tensor,
        box_position: torch.Tensor,
        point_sine: torch.Tensor,
        box_sine: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        spatial_position_embeddings: torch.Tensor,
        extent: torch.Tensor,
        valid: torch.Tensor | None,
        map_size: tuple[int, int],
        denoising_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """(B, N, d) -> (B, N, d), for queries at `points` (B, N, 2) with box `sides` (B, N, 4)."""
        attended, _ = self.self_attn(hidden_states, point_position, box_position, denoising_mask, **kwargs)
        hidden_states = self.self_attn_layer_norm(hidden_states + self.dropout(attended))
        if self.gaussian is not None:
            position_bias = self.gaussian(hidden_states, points, sides, extent, valid, map_size)
        else:
            position_bias = None if valid is None else additive_mask(valid.flatten(2)[:, None], hidden_states.dtype)
        attended, _ = self.cross_attn(
            hidden_states,
            point_position,
            box_position,
            point_sine,
            box_sine,
            encoder_hidden_states,
            spatial_position_embeddings,
            position_bias,
            **kwargs,
        )
        hidden_states = self.cross_attn_layer_norm(hidden_states + self.dropout(attended))
        return self.ffn(hidden_states)


# --- Models ----------------------------------------------------------------------------------------------------------


class SapDetrEncoder(SapDetrPreTrainedModel):
    """The transformer encoder."""

    _can_record_outputs = {"hidden_states": SapDetrEncoderLayer, "attentions": SapDetrSelfAttention}

    def __init__(self, config: SapDetrConfig):
        super().__init__(config)
        self.layers = nn.ModuleList(SapDetrEncoderLayer(config) for _ in range(config.encoder_layers))
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        inputs_embeds: torch.Tensor,
        spatial_position_embeddings: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """Encode the tokens of a feature map.

        Args:
            inputs_embeds: (B, L, d).
            spatial_position_embeddings: (B or 1, L, d).
            attention_mask: (B, L) bool, True = valid; `None` for all.
        """
        hidden_states, mask = inputs_embeds, None
        if attention_mask is not None:
            mask = additive_mask(attention_mask[:, None, None], hidden_states.dtype)  # (B, 1, 1, L)
        for layer in self.layers:
            hidden_states = layer(hidden_states, spatial_position_embeddings, mask, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states)


class SapDetrDecoder(SapDetrPreTrainedModel):
    """The decoder: queries with a reference point each, whose box sides and point are refined layer by layer."""

    _can_record_outputs = {
        "hidden_states": SapDetrDecoderLayer,
        "attentions": SapDetrDecoderSelfAttention,
        "cross_attentions": SapDetrCrossAttention,
    }

    def __init__(self, config: SapDetrConfig):
        super().__init__(config)
        d_model = config.d_model
        heads = 1 if config.share_box_heads else config.decoder_layers
        self.layers = nn.ModuleList(SapDetrDecoderLayer(config, i == 0) for i in range(config.decoder_layers))
        self.layer_norm = nn.LayerNorm(d_model)
        self.query_scale = SapDetrMLP([d_model] * 3, rule="xavier")
        self.point_position_head = SapDetrMLP([d_model] * 3)
        self.box_position_head = SapDetrMLP([2 * d_model, d_model, d_model])
        self.side_heads = nn.ModuleList(SapDetrMLP([d_model] * 3 + [4], last_rule="zero") for _ in range(heads))
        self.point_heads = nn.ModuleList(SapDetrMLP([d_model] * 3 + [2], last_rule="zero") for _ in range(heads))
        self.register_buffer("start_positions", None, persistent=False)  # (1, N, 5d) in a model for inference only
        self.post_init()

    def refine_sides(self, layer: int, hidden_states: torch.Tensor, sides: torch.Tensor) -> torch.Tensor:
        """(B, N, d), (B, N, 4) -> (B, N, 4) float32 in [0, 1], by the side head of a layer."""
        head = self.side_heads[min(layer, len(self.side_heads) - 1)]
        return (head(hidden_states).float() + logit(sides)).sigmoid()

    def refine_points(
        self,
        layer: int,
        hidden_states: torch.Tensor,
        points: torch.Tensor,
        corners: torch.Tensor,
        grid: list[int] | None = None,
    ) -> torch.Tensor:
        """(B, N, d), (B, N, 2) -> (B, N, 2) float32 in [0, 1], inside the query's cell, by the point head of a layer.

        `corners` (N, 2) or (B, N, 2) are the fixed reference points, the cells' upper left corners; `grid` rows and
        columns of the cells, `None` for the configuration's `query_grid`.
        """
        head = self.point_heads[min(layer, len(self.point_heads) - 1)]
        place = points - corners  # the released code does not divide it by the cell's size
        if self.config.point_update == "exact":
            place = in_cells(place, self.config.query_grid)
        place = (head(hidden_states).float() + logit(place)).sigmoid()  # (B, N, 2) in cells
        return corners + from_cells(place, grid or self.config.query_grid)

    def embed_positions(
        self, layer: int, hidden_states: torch.Tensor, points: torch.Tensor, sides: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Learned point and box positions, (B, N, d) each, and the sine embeddings scaled by the content, d and 2d."""
        if layer == 0 and self.start_positions is not None:
            d_model = self.config.d_model
            kept = self.start_positions.expand(len(hidden_states), -1, -1)  # (B, N, 5d)
            return kept.split([d_model, d_model, d_model, 2 * d_model], dim=-1)
        width, temperature = self.config.d_model // 2, self.config.position_temperature
        point_sine = sine_embedding(points, width, temperature).to(hidden_states.dtype)  # (B, N, d)
        box_sine = sine_embedding(box_corners(points, sides), width, temperature).to(hidden_states.dtype)  # (B, N, 2d)
        point_position = self.point_position_head(point_sine)
        box_position = self.box_position_head(box_sine)
        if layer > 0:
            scale = self.query_scale(hidden_states)
            point_sine = point_sine * scale
            box_sine = box_sine * torch.cat([scale, scale], dim=-1)
        return point_position, box_position, point_sine, box_sine

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        inputs_embeds: torch.Tensor,
        reference_points: torch.Tensor,
        box_sides: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        spatial_position_embeddings: torch.Tensor,
        extent: torch.Tensor,
        valid: torch.Tensor | None,
        map_size: tuple[int, int],
        denoising_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SapDetrDecoderOutput:
        """Decode the queries.

        Args:
            inputs_embeds: (B, N, d) initial content.
            reference_points: (N, 2) or (B, N, 2) x, y, the upper left corners of the queries' cells.
            box_sides: (B, N, 4) left, top, right, bottom.
            encoder_hidden_states: (B, L, d).
            spatial_position_embeddings: (B or 1, L, d).
            extent, valid, map_size: see [`SapDetrSideDirectedGaussian`].
            denoising_mask: (B, 1, S, S), added to the self-attention's logits of the last S queries, which denoise.
        """
        hidden_states, sides = inputs_embeds, box_sides
        points = start_points(reference_points, self.config).expand(hidden_states.shape[0], -1, -1)
        normed_states, entered_points, entered_sides = [], [points], [sides]
        for index, layer in enumerate(self.layers):
            points, sides = (points, sides) if index == 0 else (points.detach(), sides.detach())
            positions = self.embed_positions(index, hidden_states, points, sides)
            hidden_states = layer(
                hidden_states,
                points,
                sides,
                *positions,  # not as one tuple: reentrant gradient checkpointing sees plain arguments only
                encoder_hidden_states,
                spatial_position_embeddings,
                extent,
                valid,
                map_size,
                denoising_mask,
                **kwargs,
            )
            normed_states.append(self.layer_norm(hidden_states))
            if index + 1 < len(self.layers):
                old_points, points = points, self.refine_points(index, hidden_states, points, reference_points)
                sides = self.refine_sides(index, hidden_states, sides)
                # The released code records the old point: layer i + 1's heads refine the one that entered layer i.
                entered_points.append(old_points if self.config.head_points == "previous" else points)
                entered_sides.append(sides)
        return SapDetrDecoderOutput(
            last_hidden_state=normed_states[-1],
            intermediate_hidden_states=torch.stack(normed_states),
            intermediate_reference_points=torch.stack(entered_points),
            intermediate_box_sides=torch.stack(entered_sides),
        )


class SapDetrModel(SapDetrPreTrainedModel):
    """Backbone, encoder and decoder, without the class and objectness heads."""

    _input_embed_layer = "input_projection"  # for transformers: what makes tokens of the input

    def __init__(self, config: SapDetrConfig):
        super().__init__(config)
        self.backbone = build_backbone(config)
        self.input_projection = nn.Conv2d(self.backbone.channels[-1], config.d_model, kernel_size=1)
        self.encoder = SapDetrEncoder(config)
        self.query_content = SapDetrQueryContent(config) if config.sample_query_content else None
        self.query_points = SapDetrReferencePoints(config)
        self.query_sides = SapDetrQuerySides(config.num_queries, 4)
        self.query_groups = SapDetrQueryGroups(config) if config.num_groups > 1 else None
        self.decoder = SapDetrDecoder(config)
        self.post_init()

    def keep_start_positions(self):
        """Compute once what the first decoder layer embeds of the reference points and the first box sides."""
        points = start_points(self.query_points(), self.config)[None]  # (1, N, 2)
        sides = self.query_sides()[None]  # (1, N, 4)
        content = self.query_sides.weight.new_zeros(*points.shape[:2], self.config.d_model)
        self.decoder.start_positions = None
        self.decoder.start_positions = torch.cat(self.decoder.embed_positions(0, content, points, sides), dim=-1)

    def token_region(self, feature_map: torch.Tensor, pixel_mask: torch.Tensor | None) -> TokenRegion:
        """Valid tokens of (B, d, h, w), and what the points' coordinates refer to."""
        height, width = feature_map.shape[-2:]
        size = torch.stack([feature_map.new_full((), n, dtype=torch.float32) for n in (width, height)])
        if pixel_mask is None:
            return TokenRegion(mask=None, extent=size.view(1, 1, 1, 2), share=None)
        mask = valid_tokens(pixel_mask, feature_map.shape[-2:])  # (B, 1, h, w)
        if not self.config.valid_region:
            return TokenRegion(mask=mask, extent=size.view(1, 1, 1, 2), share=None)
        valid_size = valid_counts(mask).float()[:, None]  # (B, 1, 2)
        return TokenRegion(mask=mask, extent=valid_size[:, None], share=valid_size / size)

    def start_content(
        self, encoded: torch.Tensor, points: torch.Tensor, region: TokenRegion, map_size: tuple[int, int]
    ) -> torch.Tensor:
        """Content (B, N, d) of the queries at points (N, 2) that enters the decoder, from the encoder's (B, L, d)."""
        points = points.expand(encoded.shape[0], -1, -1)
        if self.query_content is None:
            return encoded.new_zeros(*points.shape[:2], encoded.shape[-1])
        encoded_map = encoded.transpose(1, 2).unflatten(2, map_size)  # (B, d, h, w)
        if region.share is None:
            return self.query_content(encoded_map, points, None)
        return self.query_content(encoded_map, points * region.share, region.mask)

    def query_corners(self, denoising: DenoisingQueries | None = None) -> torch.Tensor:
        """Corners of the cells of all queries, (N, 2); in training of all groups, and then of the denoising queries."""
        corners = self.query_points()
        if self.training and self.query_groups is not None:
            corners = corners.repeat(self.config.num_groups, 1)
        if denoising is not None:
            denoising_corners = cell_corners(denoising.points, self.config)  # need not lie in the grid
            corners = torch.cat([corners.expand(len(denoising_corners), -1, -1), denoising_corners], dim=1)
        return corners

    def start_queries(
        self, content: torch.Tensor, denoising: DenoisingQueries | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Content and sides of all queries, (B, N, d) and (B, N, 4), from the first group's content (B, N, d)."""
        sides = self.query_sides()
        if self.training and self.query_groups is not None:
            content, sides = self.query_groups(content, sides)
        sides = sides.expand(content.shape[0], -1, -1)
        if denoising is not None:
            content = torch.cat([content, denoising.content.to(content.dtype)], dim=1)
            sides = torch.cat([sides, denoising.sides], dim=1)
        return content, sides

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        denoising: DenoisingQueries | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SapDetrModelOutput:
        """Encode images and decode the queries.

        Args:
            pixel_values: (B, 3, height, width), normalized.
            pixel_mask: (B, height, width), 1 = image, 0 = padding; `None` when there is no padding.
            denoising: further queries of a training step.
        """
        if pixel_values.device.type == "cpu":  # a quarter of the backbone's time there
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        feature_map = self.input_projection(self.backbone(pixel_values).feature_maps[-1])  # (B, d, h, w)
        map_size = feature_map.shape[-2:]
        region = self.token_region(feature_map, pixel_mask)
        positions = spatial_position_embedding(
            region.mask if region.mask is not None else feature_map.new_ones((1, 1, *map_size), dtype=torch.bool),
            self.config.d_model,
            self.config.position_temperature,
        ).to(feature_map.dtype)  # (B or 1, L, d)

        encoder_outputs = self.encoder(
            feature_map.flatten(2).transpose(1, 2),
            spatial_position_embeddings=positions,
            attention_mask=None if region.mask is None else region.mask.flatten(1),
            **kwargs,
        )
        encoded = encoder_outputs.last_hidden_state  # (B, L, d)
        points = start_points(self.query_points(), self.config)
        content, sides = self.start_queries(self.start_content(encoded, points, region, map_size), denoising)
        decoder_outputs = self.decoder(
            content,
            self.query_corners(denoising),
            sides,
            encoder_hidden_states=encoded,
            spatial_position_embeddings=positions,
            extent=region.extent,
            valid=region.mask,
            map_size=map_size,
            denoising_mask=None if denoising is None else denoising.attention_mask(content.dtype),
            **kwargs,
        )
        return SapDetrModelOutput(
            last_hidden_state=decoder_outputs.last_hidden_state,
            intermediate_hidden_states=decoder_outputs.intermediate_hidden_states,
            intermediate_reference_points=decoder_outputs.intermediate_reference_points,
            intermediate_box_sides=decoder_outputs.intermediate_box_sides,
            decoder_hidden_states=decoder_outputs.hidden_states,
            decoder_attentions=decoder_outputs.attentions,
            cross_attentions=decoder_outputs.cross_attentions,
            encoder_last_hidden_state=encoded,
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
        )


class SapDetrForObjectDetection(SapDetrPreTrainedModel):
    """SAP-DETR with class and objectness heads; boxes come from the decoder's side and point heads."""

    def __init__(self, config: SapDetrConfig):
        super().__init__(config)
        d_model = config.d_model
        self.model = SapDetrModel(config)
        # The first decoder layer has a class head of its own, all others share one (released code).
        self.class_heads = nn.ModuleList(
            SapDetrMLP([d_model] * 3 + [config.num_labels], last_rule="prior")
            for _ in range(min(config.decoder_layers, 2))
        )
        self.objectness_head = initialized(nn.Linear(d_model, 1), "prior")
        self.denoising_class_embedding: nn.Embedding | None = None
        if config.denoising_pairs:
            self.denoising_class_embedding = nn.Embedding(config.num_labels, d_model)
        self.loss_function = sap_detr_loss
        self.post_init()

    def predict(
        self, outputs: SapDetrModelOutput, first: int, denoising: DenoisingQueries | None = None
    ) -> dict[str, torch.Tensor]:
        """Predictions of the decoder layers from `first` on, (layers, B, N, ·), named as in the model's output."""
        decoder, corners = self.model.decoder, self.model.query_corners(denoising)
        states = outputs.intermediate_hidden_states  # (D, B, N, d)
        entered_sides, entered_points = outputs.intermediate_box_sides, outputs.intermediate_reference_points
        layers = range(first, len(states))
        sides = torch.stack([decoder.refine_sides(i, states[i], entered_sides[i]) for i in layers])
        grid = self.config.prediction_grid
        points = torch.stack([decoder.refine_points(i, states[i], entered_points[i], corners, grid) for i in layers])
        logits = self.class_heads[-1](states[max(first, 1) :])
        if first == 0:
            logits = torch.cat([self.class_heads[0](states[:1]), logits])
        return {
            "logits": logits,
            "pred_boxes": boxes_from_sides(points, sides),
            "pred_points": points,
            "pred_objectness": self.objectness_head(states[first:]),
        }

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        labels: list[dict[str, torch.Tensor]] | None = None,
        num_boxes: torch.Tensor | float | None = None,
        denoising_noise: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SapDetrObjectDetectionOutput:
        """Detect objects.

        Args:
            pixel_values: (batch, 3, height, width), normalized images, padded at the right and bottom.
            pixel_mask: (batch, height, width), 1 = image, 0 = padding; `None` when there is no padding.
            labels: one dict per image with `class_labels` (n,) int64 and `boxes` (n, 4) float, center x, center y,
                width, height in [0, 1] of the valid image; gives `loss`.
            num_boxes: normalizer of the loss, see `sap_detr_loss`.
            denoising_noise: (batch, 2, denoising_pairs, 17), uniform in [0, 1), instead of drawing it; for training.

        Raises:
            ValueError: labels that cannot be learned from; the message names the image.
        """
        denoising = None
        if labels is not None:
            check_labels(labels, pixel_values.shape[0])
            if self.training and self.denoising_class_embedding is not None:
                denoising = denoising_queries(labels, self.denoising_class_embedding, self.config, denoising_noise)
        outputs = self.model(pixel_values, pixel_mask, denoising=denoising, **kwargs)
        depth = self.config.decoder_layers
        wants_auxiliary = labels is not None and self.config.auxiliary_loss
        predictions = self.predict(outputs, 0 if wants_auxiliary else depth - 1, denoising)
        loss, loss_dict, auxiliary_outputs = None, None, None
        if labels is not None:
            loss, loss_dict = self.total_loss(predictions, labels, num_boxes, denoising)
        if predictions["logits"].shape[2] > self.config.num_queries:  # the first group is the model
            predictions = {name: value[:, :, : self.config.num_queries] for name, value in predictions.items()}
            outputs.keep_queries(self.config.num_queries)
        if wants_auxiliary:
            auxiliary_outputs = [{name: value[i] for name, value in predictions.items()} for i in range(depth - 1)]
        last = {name: value[-1] for name, value in predictions.items()}
        return SapDetrObjectDetectionOutput(
            loss=loss, loss_dict=loss_dict, auxiliary_outputs=auxiliary_outputs, **last, **outputs
        )

    def total_loss(
        self,
        predictions: dict[str, torch.Tensor],
        labels: list[dict[str, torch.Tensor]],
        num_boxes: torch.Tensor | float | None,
        denoising: DenoisingQueries | None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of all groups of queries and of the denoising queries behind them, see `sap_detr_loss`."""
        if num_boxes is None:
            num_boxes = normalizer(labels, predictions["logits"].device)
        noisy = 0 if denoising is None else denoising.content.shape[1]
        matched = predictions["logits"].shape[2] - noisy
        loss, loss_dict = self.loss_function(
            labels=labels,
            config=self.config,
            num_boxes=num_boxes,
            num_groups=matched // self.config.num_queries,
            **{name: value[:, :, :matched] for name, value in predictions.items()},
        )
        if denoising is not None:
            noisy_loss, noisy_dict = denoising_loss(
                {name: value[:, :, matched:] for name, value in predictions.items()}, denoising, num_boxes, self.config
            )
            loss, loss_dict = loss + noisy_loss, loss_dict | noisy_dict
        return loss, loss_dict


__all__ = ["SapDetrForObjectDetection", "SapDetrModel", "SapDetrPreTrainedModel"]
