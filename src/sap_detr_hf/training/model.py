# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Build the model and image processor of a run: a published variant from scratch, or a model to fine-tune."""

import inspect
from typing import Any

import torch
import torch._dynamo
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from sap_detr_cli.settings.train import TrainingSettings

from ..data.classes import check_categories
from ..data.dataset import DetectionData
from ..distributed import say
from ..evaluation_mode import evaluation_mode
from ..model.detector_configuration import check_field_names
from ..model.image_processing_sap_detr import SapDetrImageProcessor
from ..weights.backbone import load_backbone_weights
from ..weights.class_rows import shared_classes, start_class_rows
from ..weights.pretrained import at_size, readable_model
from ..weights.variants import config_of_variant
from ..weights.warm_start import pixel_settings, warm_start
from .optimization import freeze_parameters

COMPILATIONS = 32


def build_model(settings: TrainingSettings, data: DetectionData) -> PreTrainedModel:
    """Build the model with the data's classes, its frozen parts, and gradient checkpointing where asked for.

    Raises:
        ValueError: settings or classes that do not fit; the message names the category.
        OSError: a model or weights file that cannot be read.
    """
    classes = {"id2label": data.id2label, "category_ids": data.category_ids}
    if settings.variant:
        config = config_of_variant(settings.variant, **{**classes, **settings.model_overrides})
        model: PreTrainedModel = AutoModelForObjectDetection.from_config(config)
    elif settings.init_from:
        start = warm_start(settings.init_from, **{**classes, **settings.model_overrides})
        say(start.table())
        model = start.model
    else:
        model = _model_to_fine_tune(settings, data)
    if settings.backbone_weights:
        load_backbone_weights(model, settings.backbone_weights)
    prepare_to_train(model, settings)
    if settings.variant and not settings.backbone_weights:
        check_random_backbone(model, settings)
    return model


def check_random_backbone(model: PreTrainedModel, settings: TrainingSettings) -> None:
    """Warn of constant BatchNorm in a backbone that starts from random weights.

    Raises:
        ValueError: all of its weights are frozen.
    """
    if getattr(model.config.backbone_config, "use_pretrained_backbone", False):
        return
    advice = "give `backbone_weights` (a file or Hub id with ImageNet weights)"
    if not any(parameter.requires_grad for parameter in model.base_model.get_submodule("backbone").parameters()):
        raise ValueError(f"`freeze` = {settings.freeze} would keep the random weights of the backbone: {advice}.")
    if model.config.freeze_backbone_batch_norm:
        say(
            "Warning: the backbone starts from random weights, with BatchNorm as constants, and learns very slowly: "
            f"{advice}, or set freeze_backbone_batch_norm: false in `model_overrides`."
        )


def prepare_to_train(model: PreTrainedModel, settings: TrainingSettings) -> PreTrainedModel:
    """Freeze, lay out and checkpoint a model in place, as the settings say."""
    freeze_parameters(model, settings.freeze)
    if settings.channels_last:
        nn.Module.to(model, memory_format=torch.channels_last)
    if settings.gradient_checkpointing:
        # newer transformers versions renamed the method
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    return model.train()


def freeze_unreached(model: PreTrainedModel):
    """Freeze the parameters that the loss does not depend on: under DDP, unused parameters hang or raise an error.

    Examples: backbone stages after the one we use; the first class head when `auxiliary_loss` is off.

    Args:
        model: on its training device and on all processes, because the loss sums its boxes over the processes and
            NCCL needs GPU tensors for that.
    """
    device = model.device
    labels = [constant_label(1, device)]
    devices = [device] if device.type == "cuda" else []
    # The run's BatchNorm statistics and random states must not change.
    with evaluation_mode(model), torch.random.fork_rng(devices):
        for training in (False, True):  # training mode may use other layers, and skip some at random
            for module in model.modules():
                module.training = training and not isinstance(module, nn.modules.batchnorm._BatchNorm)
            model(pixel_values=torch.zeros(1, 3, 128, 128, device=device), labels=labels).loss.backward()
    for parameter in model.parameters():
        if parameter.grad is None:
            parameter.requires_grad_(False)
    model.zero_grad(set_to_none=True)


def constant_label(boxes: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Label an image with so many equal boxes of the first class, for passes whose numbers do not matter."""
    classes = torch.zeros(boxes, dtype=torch.long, device=device)
    return {"class_labels": classes, "boxes": torch.full((boxes, 4), 0.5, device=device)}


def takes_num_boxes(model: nn.Module) -> bool:
    """Whether the loss takes a normalizer as argument; SAP-DETR's does, transformers' own detectors do not."""
    return "num_boxes" in inspect.signature(type(model).forward).parameters


def allow_compilations() -> None:
    """Raise torch's limit of 8 compilations per function: beyond it, modules silently run uncompiled.

    Modules share it, because transformers wraps their forward passes in the same function, and each is compiled for
    training and evaluation, with and without a mask.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILATIONS)


def compile_transformer(model: PreTrainedModel, **options) -> None:
    """Compile a detector's encoder and decoder in place, with `options` of `torch.compile`.

    The backbone is not compiled, because torch 2.14 recompiles the backward pass of a convolution for each image size.
    Encoder and decoder contain no convolutions, so torch compiles them only twice: for the first image size, then with
    dynamic shapes. SAP-DINO-DETR's are compiled once more when a height or width of a level that was the same so far
    changes for the first time. Do not pass `dynamic=True`:
    it also makes scalars such as `eps` symbolic, and breaks under DDP and gradient checkpointing. The loss cannot be
    compiled, because its matching uses scipy.
    """
    allow_compilations()
    for name in ("encoder", "decoder"):
        model.base_model.get_submodule(name).compile(**options)


def build_image_processor(settings: TrainingSettings) -> BaseImageProcessor:
    """Load the model's own image processor, with the settings' image size."""
    processor: Any
    if settings.model:
        with readable_model(settings.model):
            processor = AutoImageProcessor.from_pretrained(settings.model)
    else:
        processor = SapDetrImageProcessor(**(pixel_settings(settings.init_from) if settings.init_from else {}))
    return at_size(processor, settings.shortest_edge, settings.longest_edge)


def _model_to_fine_tune(settings: TrainingSettings, data: DetectionData) -> PreTrainedModel:
    assert settings.model
    with readable_model(settings.model):
        config = AutoConfig.from_pretrained(settings.model)
    check_field_names(type(config), settings.model_overrides)
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
                settings.model,
                ignore_mismatched_sizes=settings.ignore_mismatched_sizes,
                dtype=torch.float32,  # a model may have been saved in half precision
                **fields,
            )
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ValueError(
            f"`model_overrides` ({', '.join(fields)}) change the shape of weights of {settings.model}. To initialize "
            "these weights anew, set `ignore_mismatched_sizes` to true; the model then gets the classes of the data."
        ) from error
    if settings.ignore_mismatched_sizes and config.id2label != data.id2label:
        _start_class_head(model, settings, config.id2label)
    return model


def _start_class_head(model: PreTrainedModel, settings: TrainingSettings, old_classes: dict[int, str]):
    """Other classes, maybe of the same number, where no size differs, yet the old head would call a dog a ship."""
    assert settings.model
    new_classes: dict[int, str] = model.config.id2label  # type: ignore[assignment]
    pairs = shared_classes(old_classes, new_classes, settings.class_mapping)
    start_class_rows(model, AutoModelForObjectDetection.from_pretrained(settings.model, dtype=torch.float32), pairs)
    kept = ", ".join(new_classes[index] for index in pairs)
    new = ", ".join(name for index, name in new_classes.items() if index not in pairs)
    say(f"Class head: keeps {kept or 'no class'} of {settings.model}; newly initialized: {new or 'none'}.")
