# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Output classes of the models."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput

QUERIES_FIELDS = (
    "last_hidden_state", "intermediate_hidden_states", "intermediate_reference_points", "intermediate_box_sides"
)  # fmt: skip


@dataclass
class SapDetrDecoderOutput(ModelOutput):
    """Outputs of [`SapDetrDecoder`]; see [`SapDetrModelOutput`] for shapes."""

    last_hidden_state: torch.FloatTensor | None = None
    intermediate_hidden_states: torch.FloatTensor | None = None
    intermediate_reference_points: torch.FloatTensor | None = None
    intermediate_box_sides: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class SapDetrModelOutput(ModelOutput):
    """Outputs of [`SapDetrModel`].

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch, queries, d_model)`):
            Normed output of the last decoder layer.
        intermediate_hidden_states (`torch.FloatTensor` of shape `(decoder_layers, batch, queries, d_model)`):
            Normed outputs of all decoder layers.
        intermediate_reference_points (`torch.FloatTensor` of shape `(decoder_layers, batch, queries, 2)`):
            The points, x, y in [0, 1], that each layer's point head refines.
        intermediate_box_sides (`torch.FloatTensor` of shape `(decoder_layers, batch, queries, 4)`):
            The sides, left, top, right, bottom in [0, 1], that entered each layer.
        encoder_last_hidden_state (`torch.FloatTensor` of shape `(batch, h * w, d_model)`): The encoder's output.
        decoder_hidden_states, decoder_attentions, cross_attentions, encoder_hidden_states, encoder_attentions:
            As everywhere in transformers, on request.
    """

    last_hidden_state: torch.FloatTensor | None = None
    intermediate_hidden_states: torch.FloatTensor | None = None
    intermediate_reference_points: torch.FloatTensor | None = None
    intermediate_box_sides: torch.FloatTensor | None = None
    decoder_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    decoder_attentions: tuple[torch.FloatTensor, ...] | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None
    encoder_last_hidden_state: torch.FloatTensor | None = None
    encoder_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    encoder_attentions: tuple[torch.FloatTensor, ...] | None = None

    def keep_queries(self, number: int):
        """Keep the first queries only; `decoder_hidden_states` and attentions stay complete."""
        for name in QUERIES_FIELDS:
            self[name] = self[name][..., :number, :]


@dataclass
class SapDetrDetections(ModelOutput):
    """What a detector's heads and its loss add to the outputs of its model.

    Args:
        loss (`torch.FloatTensor` of shape `()`, with `labels`): Weighted sum over the losses of all layers.
        loss_dict (`dict[str, torch.Tensor]`, with `labels`): The unweighted, detached parts, see `sap_detr_loss`.
        logits (`torch.FloatTensor` of shape `(batch, queries, num_labels)`): Class logits, for a sigmoid.
        pred_boxes (`torch.FloatTensor` of shape `(batch, queries, 4)`):
            Boxes as center x, center y, width, height in [0, 1] of the valid image.
        pred_points (`torch.FloatTensor` of shape `(batch, queries, 2)`): Salient points, x, y in [0, 1].
        pred_objectness (`torch.FloatTensor` of shape `(batch, queries, 1)`): Objectness logits; used in training only.
        auxiliary_outputs (`list[dict[str, torch.Tensor]]`, with `labels` and `config.auxiliary_loss`):
            `logits`, `pred_boxes`, `pred_points`, `pred_objectness` of all decoder layers but the last.
    """

    loss: torch.FloatTensor | None = None
    loss_dict: dict[str, torch.Tensor] | None = None
    logits: torch.FloatTensor | None = None
    pred_boxes: torch.FloatTensor | None = None
    pred_points: torch.FloatTensor | None = None
    pred_objectness: torch.FloatTensor | None = None
    auxiliary_outputs: list[dict[str, torch.Tensor]] | None = None


@dataclass
class SapDetrObjectDetectionOutput(SapDetrModelOutput, SapDetrDetections):  # the last base's fields come first
    """Outputs of [`SapDetrForObjectDetection`]: [`SapDetrDetections`]', then [`SapDetrModelOutput`]'s."""


@dataclass
class SapDinoDetrDecoderOutput(SapDetrDecoderOutput):
    """Outputs of [`SapDinoDetrDecoder`]; see [`SapDinoDetrModelOutput`] for shapes."""

    intermediate_cell_places: torch.FloatTensor | None = None


@dataclass
class SapDinoDetrModelOutput(SapDetrModelOutput):
    """Outputs of [`SapDinoDetrModel`]: [`SapDetrModelOutput`]'s, for the queries selected in each image, and these.

    Args:
        intermediate_cell_places (`torch.FloatTensor` of shape `(decoder_layers, batch, queries, 2)`):
            Where each layer's points lie in their cells, x, y in (0, 1).
        query_corners, query_cells (`torch.FloatTensor` of shape `(batch, queries, 2)`):
            Upper left corner and size of each query's cell: the token it was selected at.
        query_levels (`torch.LongTensor` of shape `(batch, queries)`): The level of that token, 0 = finest.
        query_mask (`torch.LongTensor` of shape `(batch, queries)`):
            0 for a query without a token, where an image of a padded batch has fewer tokens than queries, else 1;
            absent without a `pixel_mask`.
        encoder_logits, encoder_objectness, encoder_pred_boxes, encoder_pred_points:
            What the encoder's own heads predict of the selected tokens, as in [`SapDetrObjectDetectionOutput`].
    """

    intermediate_cell_places: torch.FloatTensor | None = None
    query_corners: torch.FloatTensor | None = None
    query_cells: torch.FloatTensor | None = None
    query_levels: torch.LongTensor | None = None
    query_mask: torch.LongTensor | None = None
    encoder_logits: torch.FloatTensor | None = None
    encoder_objectness: torch.FloatTensor | None = None
    encoder_pred_boxes: torch.FloatTensor | None = None
    encoder_pred_points: torch.FloatTensor | None = None

    def keep_queries(self, number: int):
        """As [`SapDetrModelOutput`]'s."""
        super().keep_queries(number)
        for name in ("intermediate_cell_places", "query_corners", "query_cells"):
            self[name] = self[name][..., :number, :]
        for name in ("query_levels", "query_mask"):
            if name in self:  # it holds no None
                self[name] = self[name][:, :number]


@dataclass
class SapDinoDetrObjectDetectionOutput(SapDinoDetrModelOutput, SapDetrObjectDetectionOutput):
    """Outputs of [`SapDinoDetrForObjectDetection`]: [`SapDetrDetections`]', then [`SapDinoDetrModelOutput`]'s."""
