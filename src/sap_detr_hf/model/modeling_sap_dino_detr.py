# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""SAP-DINO-DETR: salient points on a feature pyramid, selected among its tokens as DINO selects its queries.

Reading order: `SapDinoDetrForObjectDetection.forward` -> `SapDinoDetrModel.forward` -> `SapDinoDetrSelection.forward`,
`SapDinoDetrDecoder.forward` -> `SapDinoDetrDecoderLayer.forward`. Letters in shape comments: B images, N queries,
S tokens of all levels, d model width, K classes, D decoder layers. Positions are x, y in [0, 1] of the valid image;
box sides are the distances left, top, right, bottom from a point to the sides of its box, in the same units.

A query's point stays in a cell, that of the token it was selected at: point = corner + cell * place, with the place
in (0, 1). Layers refine places and sides.
"""

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention import SapDetrSelfAttention, additive_mask
from .backbone import build_backbone
from .configuration_sap_dino_detr import SapDinoDetrConfig
from .deformable_attention import SapDinoDetrSideDirectedSampling, SapDinoDetrTokenAttention
from .denoising import DenoisingQueries, denoising_loss, denoising_queries
from .feed_forward import SapDetrFeedForward, SapDetrMLP
from .initialization import initialized
from .loss import check_labels, normalizer, sap_detr_loss
from .outputs import SapDinoDetrDecoderOutput, SapDinoDetrModelOutput, SapDinoDetrObjectDetectionOutput
from .positions import sine_embedding, spatial_position_embedding
from .pretrained_model import SapDetrPreTrainedModel
from .query_selection import SapDinoDetrSelection, with_denoising
from .salient_points import box_corners, boxes_from_sides, logit
from .token_pyramid import SapDinoDetrPyramidProjection, TokenPyramid, token_pyramid

UNUSED_LOGIT = -50.0  # of a query without a token: neither a detection nor a loss


# --- Encoder ---------------------------------------------------------------------------------------------------------


class SapDinoDetrEncoderLayer(GradientCheckpointingLayer):
    """Post-norm encoder layer with deformable attention."""

    def __init__(self, config: SapDinoDetrConfig):
        super().__init__()
        layout = (config.encoder_attention_heads, config.num_feature_levels, config.encoder_n_points)
        self.self_attn = SapDinoDetrTokenAttention(config.d_model, *layout)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.ffn = SapDetrFeedForward(config, config.encoder_ffn_dim)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: torch.Tensor,
        pyramid: TokenPyramid,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """(B, S, d) -> (B, S, d)."""
        attended, _ = self.self_attn(hidden_states + position_embeddings, hidden_states, pyramid)
        hidden_states = self.self_attn_layer_norm(hidden_states + self.dropout(attended))
        return self.ffn(hidden_states)


# --- Decoder ---------------------------------------------------------------------------------------------------------


class SapDinoDetrDecoderLayer(GradientCheckpointingLayer):
    """Post-norm decoder layer: self-attention, side-directed sampling, feed-forward."""

    def __init__(self, config: SapDinoDetrConfig):
        super().__init__()
        layout = (config.decoder_attention_heads, config.num_feature_levels, config.decoder_n_points)
        self.self_attn = SapDetrSelfAttention(config, config.decoder_attention_heads)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.cross_attn = SapDinoDetrSideDirectedSampling(config.d_model, *layout)
        self.cross_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.ffn = SapDetrFeedForward(config, config.decoder_ffn_dim)

    def forward(
        self,
        hidden_states: torch.Tensor,
        query_positions: torch.Tensor,
        points: torch.Tensor,
        sides: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        pyramid: TokenPyramid,
        attention_mask: torch.Tensor | None,
        denoising_mask: torch.Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """(B, N, d) -> (B, N, d), for queries at `points` (B, N, 2) with box `sides` (B, N, 4)."""
        attended, _ = self.self_attn(hidden_states, query_positions, attention_mask, denoising_mask, **kwargs)
        hidden_states = self.self_attn_layer_norm(hidden_states + self.dropout(attended))
        attended, _ = self.cross_attn(
            hidden_states + query_positions, encoder_hidden_states, pyramid, points=points, sides=sides
        )
        hidden_states = self.cross_attn_layer_norm(hidden_states + self.dropout(attended))
        return self.ffn(hidden_states)


# --- Models ----------------------------------------------------------------------------------------------------------


class SapDinoDetrPreTrainedModel(SapDetrPreTrainedModel):
    """What transformers needs to know of the models; weight initialization and the rest as SAP-DETR's."""

    config: SapDinoDetrConfig
    _no_split_modules = ["SapDinoDetrEncoderLayer", "SapDinoDetrDecoderLayer", "SapDetrFusedBlock"]


class SapDinoDetrEncoder(SapDinoDetrPreTrainedModel):
    """The transformer encoder."""

    _can_record_outputs = {"hidden_states": SapDinoDetrEncoderLayer, "attentions": SapDinoDetrTokenAttention}

    def __init__(self, config: SapDinoDetrConfig):
        super().__init__(config)
        self.layers = nn.ModuleList(SapDinoDetrEncoderLayer(config) for _ in range(config.encoder_layers))
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        inputs_embeds: torch.Tensor,
        position_embeddings: torch.Tensor,
        pyramid: TokenPyramid,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """Encode the tokens (B, S, d) of all levels; their position embeddings are (B or 1, S, d)."""
        hidden_states = inputs_embeds
        for layer in self.layers:
            hidden_states = layer(hidden_states, position_embeddings, pyramid, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states)


class SapDinoDetrDecoder(SapDinoDetrPreTrainedModel):
    """The decoder: queries with a point each, whose box sides and place in the cell are refined layer by layer."""

    _can_record_outputs = {
        "hidden_states": SapDinoDetrDecoderLayer,
        "attentions": SapDetrSelfAttention,
        "cross_attentions": SapDinoDetrSideDirectedSampling,
    }

    def __init__(self, config: SapDinoDetrConfig):
        super().__init__(config)
        d_model = config.d_model
        heads = 1 if config.share_box_heads else config.decoder_layers
        self.layers = nn.ModuleList(SapDinoDetrDecoderLayer(config) for _ in range(config.decoder_layers))
        self.layer_norm = nn.LayerNorm(d_model)
        self.query_position_head = SapDetrMLP([3 * d_model, d_model, d_model], rule="xavier")
        self.side_heads = nn.ModuleList(SapDetrMLP([d_model] * 3 + [4], last_rule="zero") for _ in range(heads))
        self.point_heads = nn.ModuleList(SapDetrMLP([d_model] * 3 + [2], last_rule="zero") for _ in range(heads))
        self.post_init()

    def refine(
        self, layer: int, hidden_states: torch.Tensor, places: torch.Tensor, sides: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Places (B, N, 2) and sides (B, N, 4), float32, by the heads of a layer."""
        number = min(layer, len(self.side_heads) - 1)
        places = (self.point_heads[number](hidden_states).float() + logit(places)).sigmoid()
        return places, (self.side_heads[number](hidden_states).float() + logit(sides)).sigmoid()

    def embed_positions(self, points: torch.Tensor, sides: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Learned positions (B, N, d) of points (B, N, 2) and their boxes."""
        coordinates = torch.cat([points, box_corners(points, sides)], dim=-1)  # (B, N, 6)
        sine = sine_embedding(coordinates, self.config.d_model // 2, self.config.position_temperature)
        return self.query_position_head(sine.to(dtype))

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        inputs_embeds: torch.Tensor,
        corners: torch.Tensor,
        cells: torch.Tensor,
        places: torch.Tensor,
        sides: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        pyramid: TokenPyramid,
        attention_mask: torch.Tensor | None = None,
        denoising_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SapDinoDetrDecoderOutput:
        """Decode the queries.

        Args:
            inputs_embeds: (B, N, d) initial content.
            corners, cells, places: (B, N, 2) each; the points are corners + cells * places.
            sides: (B, N, 4) left, top, right, bottom.
            encoder_hidden_states: (B, S, d).
            pyramid: where these tokens lie.
            attention_mask: (B, N - P) bool, False for queries that others must not see; `None` for all.
            denoising_mask: (B, 1, P, P), added to the self-attention's logits of the last P queries, which denoise.
        """
        hidden_states, mask = inputs_embeds, None
        if attention_mask is not None:
            mask = additive_mask(attention_mask[:, None, None], hidden_states.dtype)  # (B, 1, 1, N)
        normed_states, entered_places, entered_sides = [], [places], [sides]
        for index, layer in enumerate(self.layers):
            places, sides = places.detach(), sides.detach()
            points = corners + cells * places
            hidden_states = layer(
                hidden_states,
                self.embed_positions(points, sides, hidden_states.dtype),
                points,
                sides,
                encoder_hidden_states,
                pyramid,
                mask,
                denoising_mask,
                **kwargs,
            )
            normed_states.append(self.layer_norm(hidden_states))
            if index + 1 < len(self.layers):
                # The next layer's heads refine them with their gradient, and so train this layer's: look forward twice.
                places, sides = self.refine(index, hidden_states, places, sides)
                entered_places.append(places)
                entered_sides.append(sides)
        return SapDinoDetrDecoderOutput(
            last_hidden_state=normed_states[-1],
            intermediate_hidden_states=torch.stack(normed_states),
            intermediate_reference_points=corners + cells * torch.stack(entered_places),
            intermediate_box_sides=torch.stack(entered_sides),
            intermediate_cell_places=torch.stack(entered_places),
        )


class SapDinoDetrModel(SapDinoDetrPreTrainedModel):
    """Backbone, encoder, selection and decoder, without the decoder's class and objectness heads."""

    def __init__(self, config: SapDinoDetrConfig):
        super().__init__(config)
        self.backbone = build_backbone(config)
        self.input_projection = SapDinoDetrPyramidProjection(config, self.backbone.channels)
        self.level_embeddings = nn.Embedding(config.num_feature_levels, config.d_model)
        self.encoder = SapDinoDetrEncoder(config)
        self.selection = SapDinoDetrSelection(config)
        self.query_content = nn.Embedding(config.num_queries, config.d_model)
        self.decoder = SapDinoDetrDecoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The projection of the finest feature map to tokens."""
        return self.input_projection.convolutions[0]

    def set_input_embeddings(self, value: nn.Module):
        """Replace the projection of the finest feature map to tokens."""
        self.input_projection.convolutions[0] = value

    def token_positions(self, maps: list[torch.Tensor], masks: list[torch.Tensor] | None) -> torch.Tensor:
        """Position embeddings (B or 1, S, d) of the tokens of maps (B, d, h, w), with their level's own."""
        config, embeddings = self.config, []
        for level, tokens in enumerate(maps):
            mask = tokens.new_ones((1, 1, *tokens.shape[-2:]), dtype=torch.bool) if masks is None else masks[level]
            sine = spatial_position_embedding(
                mask, config.d_model, config.token_position_temperature, config.token_position_offset
            )
            embeddings.append(sine.to(tokens.dtype) + self.level_embeddings.weight[level])
        return torch.cat(embeddings, dim=1)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        denoising: DenoisingQueries | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SapDinoDetrModelOutput:
        """Encode images, select queries and decode them.

        Args:
            pixel_values: (B, 3, height, width), normalized.
            pixel_mask: (B, height, width), 1 = image, 0 = padding; `None` when there is no padding.
            denoising: further queries of a training step, behind the selected ones.
        """
        if pixel_values.device.type == "cpu":  # a quarter of the backbone's time there
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        maps, masks = self.input_projection(self.backbone(pixel_values).feature_maps, pixel_mask)
        pyramid = token_pyramid(maps, masks)
        encoder_outputs = self.encoder(
            torch.cat([tokens.flatten(2).transpose(1, 2) for tokens in maps], dim=1),
            position_embeddings=self.token_positions(maps, masks),
            pyramid=pyramid,
            **kwargs,
        )
        encoded = encoder_outputs.last_hidden_state  # (B, S, d)
        queries, logits, objectness = self.selection(encoded, pyramid)
        points = queries.corners + queries.cells * queries.places
        content = self.query_content(torch.arange(points.shape[1], device=points.device)).to(encoded.dtype)
        content = content.expand(points.shape[0], -1, -1)  # `len` would make the traced batch a constant
        if denoising is not None:
            content = torch.cat([content, denoising.content.to(content.dtype)], dim=1)
        start = with_denoising(queries, denoising, pyramid)
        decoder_outputs = self.decoder(
            content,
            corners=start.corners,
            cells=start.cells,
            places=start.places,
            sides=start.sides,
            encoder_hidden_states=encoded,
            pyramid=pyramid,
            attention_mask=queries.valid,
            denoising_mask=None if denoising is None else denoising.attention_mask(encoded.dtype),
            **kwargs,
        )
        return SapDinoDetrModelOutput(
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
            intermediate_cell_places=decoder_outputs.intermediate_cell_places,
            query_corners=start.corners,
            query_cells=start.cells,
            query_levels=start.levels,
            query_mask=None if start.valid is None else start.valid.long(),
            encoder_logits=without_unused(logits, queries.valid),
            encoder_objectness=without_unused(objectness, queries.valid),
            encoder_pred_boxes=boxes_from_sides(points, queries.sides),
            encoder_pred_points=points,
        )


def without_unused(logits: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """Logits (..., B, N, ·) that say "nothing" where a query has no token."""
    return logits if valid is None else logits.masked_fill(~valid[..., None], UNUSED_LOGIT)


class SapDinoDetrForObjectDetection(SapDinoDetrPreTrainedModel):
    """SAP-DINO-DETR with class and objectness heads; boxes come from the decoder's side and point heads."""

    def __init__(self, config: SapDinoDetrConfig):
        super().__init__(config)
        self.model = SapDinoDetrModel(config)
        self.class_head = initialized(nn.Linear(config.d_model, config.num_labels), "prior")
        self.objectness_head = initialized(nn.Linear(config.d_model, 1), "prior")
        self.denoising_class_embedding: nn.Embedding | None = None
        if config.denoising_pairs:
            self.denoising_class_embedding = nn.Embedding(config.num_labels, config.d_model)
        self.loss_function = sap_detr_loss
        self.post_init()

    def predict(self, outputs: SapDinoDetrModelOutput, first: int) -> dict[str, torch.Tensor]:
        """Predictions of the decoder layers from `first` on, (layers, B, N, ·), named as in the model's output."""
        states = outputs.intermediate_hidden_states  # (D, B, N, d)
        entered = outputs.intermediate_cell_places, outputs.intermediate_box_sides
        layers = range(first, len(states))
        refined = [self.model.decoder.refine(i, states[i], *(values[i] for values in entered)) for i in layers]
        places, sides = (torch.stack(values) for values in zip(*refined, strict=True))
        points = outputs.query_corners + outputs.query_cells * places
        valid = None if outputs.query_mask is None else outputs.query_mask > 0
        return {
            "logits": without_unused(self.class_head(states[first:]), valid),
            "pred_boxes": boxes_from_sides(points, sides),
            "pred_points": points,
            "pred_objectness": without_unused(self.objectness_head(states[first:]), valid),
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
    ) -> SapDinoDetrObjectDetectionOutput:
        """Detect objects; arguments as [`SapDetrForObjectDetection`]'s, but the noise of denoising is (B, 2, P, 18).

        With `labels`, `loss_dict` also has the losses of the selected tokens, as `loss_..._enc`.

        Raises:
            ValueError: labels that cannot be learned from; the message names the image.
        """
        denoising = None
        if labels is not None:
            check_labels(labels, pixel_values.shape[0])
            if self.training and self.denoising_class_embedding is not None:
                denoising = denoising_queries(labels, self.denoising_class_embedding, self.config, denoising_noise)
        outputs = self.model(pixel_values, pixel_mask, denoising=denoising, **kwargs)
        depth, matched = self.config.decoder_layers, outputs.encoder_logits.shape[1]
        wants_auxiliary = labels is not None and self.config.auxiliary_loss
        predictions = self.predict(outputs, 0 if wants_auxiliary else depth - 1)
        loss, loss_dict, auxiliary_outputs = None, None, None
        if labels is not None:
            loss, loss_dict = self.total_loss(outputs, predictions, labels, num_boxes, denoising)
        if denoising is not None:
            predictions = {name: value[:, :, :matched] for name, value in predictions.items()}
            outputs.keep_queries(matched)
        if wants_auxiliary:
            auxiliary_outputs = [{name: value[i] for name, value in predictions.items()} for i in range(depth - 1)]
        last = {name: value[-1] for name, value in predictions.items()}
        return SapDinoDetrObjectDetectionOutput(
            loss=loss, loss_dict=loss_dict, auxiliary_outputs=auxiliary_outputs, **last, **outputs
        )

    def total_loss(
        self,
        outputs: SapDinoDetrModelOutput,
        predictions: dict[str, torch.Tensor],
        labels: list[dict[str, torch.Tensor]],
        num_boxes: torch.Tensor | float | None,
        denoising: DenoisingQueries | None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss over the selected tokens and, as further layers, over the decoder's; then of the denoising."""
        if num_boxes is None:
            num_boxes = normalizer(labels, predictions["logits"].device)
        selected = {
            "logits": outputs.encoder_logits,
            "pred_boxes": outputs.encoder_pred_boxes,
            "pred_points": outputs.encoder_pred_points,
            "pred_objectness": outputs.encoder_objectness,
        }
        matched = selected["logits"].shape[1]
        layers = {name: torch.cat([selected[name][None], v[:, :, :matched]]) for name, v in predictions.items()}
        mask = None if outputs.query_mask is None else outputs.query_mask[:, :matched] > 0
        loss, loss_dict = self.loss_function(
            labels=labels, config=self.config, num_boxes=num_boxes, query_mask=mask, **layers
        )
        loss_dict = {named_without_selection(name): value for name, value in loss_dict.items()}
        if denoising is not None:
            noisy_loss, noisy_dict = denoising_loss(
                {name: value[:, :, matched:] for name, value in predictions.items()}, denoising, num_boxes, self.config
            )
            loss, loss_dict = loss + noisy_loss, loss_dict | noisy_dict
        return loss, loss_dict


def named_without_selection(name: str) -> str:
    """`loss_..._0` -> `loss_..._enc`, and `loss_..._{i}` -> `loss_..._{i - 1}`: layers are the decoder's."""
    stem, _, layer = name.rpartition("_")
    if not layer.isdigit():
        return name
    return f"{stem}_enc" if layer == "0" else f"{stem}_{int(layer) - 1}"


__all__ = ["SapDinoDetrForObjectDetection", "SapDinoDetrModel", "SapDinoDetrPreTrainedModel"]
