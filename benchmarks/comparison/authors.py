# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Train transformers' detectors as their authors do: their initial values, losses and image sizes.

Transformers 5 makes models for trained weights, and training them from the start suffers where it differs from the
authors' code:

* It draws all matrices and query embeddings from N(0, 0.02), RT-DETR's also the factors of BatchNorm from N(0, 0.01).
  DAB-DETR's anchors then all lie in the middle of the picture with half its size.
* The loss of Deformable DETR leaves out the first stage, whose class and box head so learn nothing: the proposals stay
  random tokens.
* The class loss of Conditional DETR and Deformable DETR has a weight of 1, not 2.
"""

import copy
import functools
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import (
    ConditionalDetrForObjectDetection,
    DeformableDetrForObjectDetection,
    PreTrainedModel,
    RTDetrV2Model,
)
from transformers.loss.loss_deformable_detr import DeformableDetrForObjectDetectionLoss

CLASS_HEAD = re.compile(r"(class_embed|class_labels_classifier|enc_score_head)(\.\d+)?$")
BOX_HEAD_END = re.compile(r"(bbox_embed|bbox_predictor|enc_bbox_head)(\.\d+)?\.layers\.2$")
HEAD = re.compile(r"class_embed|class_labels_classifier|enc_score_head|bbox_embed|bbox_predictor|enc_bbox_head")
# Drawn from Xavier's distribution, with torch's own values for all other matrices and biases
XAVIER = re.compile(r"^model\.(encoder|decoder|enc_output|pos_trans|input_proj)(\.|$)")
XAVIER_IN_RT_DETR = re.compile(
    r"\.([qkv]_proj|value_proj|output_proj|enc_output\.0|query_pos_head\.layers\.\d|decoder_input_proj\.\d\.0)$"
)
WITHOUT_BIAS = re.compile(r"\.(out_proj|o_proj|output_proj|value_proj)$|^\.model\.input_proj\.\d\.0$")
CLASS_PRIOR = 0.01
RT_DETR_MULTIPLE = 32


def authors_initial_values(model: PreTrainedModel) -> None:
    """Draw DAB-DETR, Conditional DETR, Deformable DETR or RT-DETR v2 outside the backbone as its authors do.

    Sampling offsets and the weights of deformable attention stay as transformers sets them, which is as published.
    """
    xavier = XAVIER_IN_RT_DETR if isinstance(model.base_model, RTDetrV2Model) else XAVIER
    modules = {name: module for name, module in model.named_modules() if "backbone" not in name.split(".")}
    for name, module in modules.items():
        if isinstance(module, nn.Embedding | nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, nn.Linear | nn.Conv2d):
            if not module.weight.any() and not BOX_HEAD_END.search(name):
                continue  # of deformable attention
            module.reset_parameters()
            # `nn.MultiheadAttention` draws queries, keys and values as one matrix.
            fused = re.search(r"\.[qkv]_proj$", name) and f"{name[:-6]}q_proj" in modules
            if xavier.search(name) and not HEAD.search(name):
                nn.init.xavier_uniform_(module.weight, gain=math.sqrt(0.5) if fused else 1.0)
            if module.bias is not None and (fused or WITHOUT_BIAS.search(f".{name}")):
                nn.init.zeros_(module.bias)
            if BOX_HEAD_END.search(name):
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.get_parameter("bias"))
            if CLASS_HEAD.search(name):
                nn.init.constant_(module.get_parameter("bias"), -math.log((1 - CLASS_PRIOR) / CLASS_PRIOR))


def with_class_loss_twice(forward: Callable) -> Callable:
    """Give the class loss of every layer its published weight."""

    @functools.wraps(forward)
    def call(self: Any, *arguments: Any, labels: Any = None, **further: Any) -> Any:
        outputs = forward(self, *arguments, labels=labels, **further)
        if labels is not None:
            outputs.loss = outputs.loss + class_losses(outputs.loss_dict)
        return outputs

    return call


def with_first_stage(forward: Callable) -> Callable:
    """Let the first stage learn which tokens lie on an object of any class, and the objects' boxes."""

    @functools.wraps(forward)
    def call(self: Any, *arguments: Any, labels: Any = None, **further: Any) -> Any:
        outputs = forward(self, *arguments, labels=labels, **further)
        if labels is not None:
            config = copy.copy(self.config)
            config.auxiliary_loss = False
            objects = [{**label, "class_labels": torch.zeros_like(label["class_labels"])} for label in labels]
            logits, boxes = outputs.enc_outputs_class, outputs.enc_outputs_coord_logits.sigmoid()  # (B, S, ·)
            loss, parts, _ = DeformableDetrForObjectDetectionLoss(logits, objects, self.device, boxes, config)
            outputs.loss = outputs.loss + loss + class_losses(parts)
            outputs.loss_dict = {**outputs.loss_dict, **{f"{name}_enc": value for name, value in parts.items()}}
        return outputs

    return call


def class_losses(parts: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sum of the class losses of all layers."""
    return torch.stack([value for name, value in parts.items() if name.startswith("loss_ce")]).sum()


def with_sides_of_whole_cells(forward: Callable) -> Callable:
    """Resize images to sides that are multiples of 32, for RT-DETR takes no others; boxes are shares of the sides."""

    @functools.wraps(forward)
    def call(self: Any, pixel_values: torch.Tensor, *arguments: Any, **further: Any) -> Any:  # (B, 3, H, W)
        sides = [-(-side // RT_DETR_MULTIPLE) * RT_DETR_MULTIPLE for side in pixel_values.shape[-2:]]
        if sides != list(pixel_values.shape[-2:]):
            pixel_values = nn.functional.interpolate(pixel_values, sides, mode="bilinear", align_corners=False)
        return forward(self, pixel_values, *arguments, **further)

    return call


CHANGES: list[tuple[Any, Callable]] = [
    (ConditionalDetrForObjectDetection, with_class_loss_twice),
    (DeformableDetrForObjectDetection, with_class_loss_twice),
    (DeformableDetrForObjectDetection, with_first_stage),
    (RTDetrV2Model, with_sides_of_whole_cells),
]


@contextmanager
def trained_as_by_authors() -> Iterator[None]:
    """Change losses and image sizes of transformers' detectors, as long as the context lasts."""
    forwards = {owner: owner.forward for owner, _ in CHANGES}
    for owner, change in CHANGES:
        owner.forward = change(owner.forward)
    try:
        yield
    finally:
        for owner, forward in forwards.items():
            owner.forward = forward
