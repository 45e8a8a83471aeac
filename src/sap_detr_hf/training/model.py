# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""The model and image processor that a run starts from: a published variant from scratch, or a model to fine-tune."""

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ..data.dataset import DetectionData, check_categories
from ..evaluation_mode import evaluation_mode
from ..model.image_processing_sap_detr import SapDetrImageProcessor
from ..weights.pretrained import readable_model
from ..weights.variants import config_of_variant
from .optimization import freeze_parameters
from .settings import TrainingSettings


def build_model(settings: TrainingSettings, data: DetectionData) -> PreTrainedModel:
    """The model with the data's classes, its frozen parts, and gradient checkpointing where asked for.

    Raises:
        ValueError: settings or classes that do not fit; the message names the category.
        OSError: a model or weights file that cannot be read.
    """
    if settings.variant:
        classes = {"id2label": data.id2label, "category_ids": data.category_ids}
        config = config_of_variant(settings.variant, **{**classes, **settings.model_overrides})
        model: PreTrainedModel = AutoModelForObjectDetection.from_config(config)
    else:
        model = _model_to_fine_tune(settings, data)
    if settings.backbone_weights:
        from ..weights.backbone import load_backbone_weights

        load_backbone_weights(model, settings.backbone_weights)
    freeze_parameters(model, settings.freeze)
    if settings.channels_last:
        nn.Module.to(model, memory_format=torch.channels_last)
    if settings.gradient_checkpointing:
        # The newer name where transformers has it
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    return model.train()


def freeze_unreached(model: PreTrainedModel):
    """Takes the gradient from parameters that the loss does not depend on.

    Such are a backbone's stages behind the one that is used or, without auxiliary losses, the first layer's class
    head. Several processes would wait for their gradients for ever (or refuse to run).

    Args:
        model: on the device it will be trained on, on all processes: losses add up their boxes over the processes,
            which NCCL can do on GPUs alone.
    """
    device = model.device
    label = {"class_labels": torch.zeros(1, dtype=torch.long, device=device)}
    label["boxes"] = torch.full((1, 4), 0.5, device=device)
    devices = [device] if device.type == "cuda" else []
    with evaluation_mode(model), torch.random.fork_rng(devices):  # statistics and random states stay as they are
        for training in (False, True):  # in training, chance may skip a layer, and others come in
            for module in model.modules():
                module.training = training and not isinstance(module, nn.modules.batchnorm._BatchNorm)
            model(pixel_values=torch.zeros(1, 3, 128, 128, device=device), labels=[label]).loss.backward()
    for parameter in model.parameters():
        if parameter.grad is None:
            parameter.requires_grad_(False)
    model.zero_grad(set_to_none=True)


def build_image_processor(settings: TrainingSettings) -> BaseImageProcessor:
    """The model's own image processor, with the settings' image size."""
    processor: Any
    if settings.model:
        with readable_model(settings.model):
            processor = AutoImageProcessor.from_pretrained(settings.model)
    else:
        processor = SapDetrImageProcessor()
    size = dict(processor.size)
    size.update({key: value for key, value in _wanted_size(settings).items() if value is not None})
    return type(processor).from_dict({**processor.to_dict(), "size": size})


def _wanted_size(settings: TrainingSettings) -> dict[str, int | None]:
    return {"shortest_edge": settings.shortest_edge, "longest_edge": settings.longest_edge}


def _model_to_fine_tune(settings: TrainingSettings, data: DetectionData) -> PreTrainedModel:
    assert settings.model
    with readable_model(settings.model):
        config = AutoConfig.from_pretrained(settings.model)
    fields: dict[str, Any] = dict(settings.model_overrides)
    if settings.ignore_mismatched_sizes:
        classes = {"id2label": data.id2label, "label2id": {name: index for index, name in data.id2label.items()}}
        fields = {**classes, "category_ids": data.category_ids, **fields}
    else:
        try:
            check_categories(data, config)
        except ValueError as error:
            raise ValueError(f"{error} To train a new class head, set `ignore_mismatched_sizes` to true.") from error
    try:
        with readable_model(settings.model):
            model = AutoModelForObjectDetection.from_pretrained(
                settings.model, ignore_mismatched_sizes=settings.ignore_mismatched_sizes, **fields
            )
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ValueError(
            f"`model_overrides` ({', '.join(fields)}) change the shape of weights of {settings.model}. To start these "
            "weights anew, set `ignore_mismatched_sizes` to true; the classes become those of the data then."
        ) from error
    same_number = len(config.id2label) == len(data.id2label)
    if settings.ignore_mismatched_sizes and same_number and config.id2label != data.id2label:
        _renew_class_head(model)
    return model


@torch.no_grad()
def _renew_class_head(model: PreTrainedModel):
    """Other classes of the same number: no size differs, yet the old head would call a dog a ship."""
    fresh = type(model)(model.config).state_dict()
    for name, parameter in model.named_parameters():
        if "class" in name and parameter.shape[0] == model.config.num_labels:
            parameter.copy_(fresh[name])
