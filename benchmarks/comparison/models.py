# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""The detectors that are trained and compared, all of one size on one frozen ImageNet backbone.

Equal for all: backbone (EfficientNet-Lite0, BatchNorm as constants), width, layers, feed-forward width, no dropout, a
loss on every decoder layer. Query counts are the published ones divided by three. What belongs to a family stays as
transformers or the paper has it: attention, query initialization, activations, loss weights.

Transformers' detectors are trained as their authors do, see [`benchmarks.comparison.authors`]; DAB-DETR also with the
initial values of transformers, to show what those cost it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from accelerate.utils import set_seed
from torch import nn
from transformers import (
    AutoBackbone,
    AutoModelForObjectDetection,
    ConditionalDetrConfig,
    DabDetrConfig,
    DeformableDetrConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RTDetrV2Config,
    TimmBackboneConfig,
)

from sap_detr_hf.model.configuration_sap_detr import CORRECTED
from sap_detr_hf.weights.backbone import PACKAGED, load_backbone_weights
from sap_detr_hf.weights.variants import config_of_variant
from sap_detr_hf.weights.warm_start import warm_start

from .authors import authors_initial_values

WIDTH = 128
SIZES: dict[str, Any] = {"encoder_layers": 1, "decoder_layers": 3, "encoder_ffn_dim": 512, "decoder_ffn_dim": 512}
SINGLE_SCALE = (3,)  # stride 16
PYRAMID = (2, 3, 4)  # strides 8, 16 and 32
CHANNELS = {2: 40, 3: 112, 4: 320}  # of EfficientNet-Lite0's feature maps
DENOISING_PAIRS = 16

Classes = Mapping[str, Any]
"""`id2label`, `label2id` and `category_ids` of the data."""


def backbone_config(maps: tuple[int, ...]) -> dict[str, Any]:
    """EfficientNet-Lite0 with these feature maps.

    timm freezes the BatchNorm itself: transformers' replacement by FrozenBatchNorm2d drops the activation that timm's
    BatchNormAct2d carries, and a pretrained backbone without its activations is worth nothing.
    """
    return {
        "model_type": "timm_backbone",
        "backbone": "tf_efficientnet_lite0",
        "out_indices": list(maps),
        "use_pretrained_backbone": False,
        "freeze_batch_norm_2d": True,
    }


def sap_detr(classes: Classes, **fields: Any) -> PreTrainedConfig:
    """SAP-DETR as released, with the fields of a variant."""
    grid: dict[str, Any] = {"query_grid": (10, 10), "frozen_backbone_stages": 0}
    backbone = backbone_config(SINGLE_SCALE)
    return config_of_variant("r50", d_model=WIDTH, backbone_config=backbone, **grid, **SIZES, **classes, **fields)


def sap_dino(classes: Classes, **fields: Any) -> PreTrainedConfig:
    """SAP-DINO-DETR."""
    fields = {"num_queries": 300, "frozen_backbone_stages": 0, **fields}
    backbone = backbone_config(PYRAMID)
    return config_of_variant(
        "dino-small", **{"d_model": WIDTH, "backbone_config": backbone, **SIZES, **classes, **fields}
    )


def peer_fields(classes: Classes, maps: tuple[int, ...]) -> dict[str, Any]:
    """What transformers' detectors take under the same names."""
    backbone = TimmBackboneConfig(**backbone_config(maps))
    return {**SIZES, **classes, "backbone_config": backbone, "num_queries": 100, "dropout": 0.0, "auxiliary_loss": True}


def dab_detr(classes: Classes) -> PreTrainedConfig:
    """Transformers' DAB-DETR."""
    return DabDetrConfig(hidden_size=WIDTH, **peer_fields(classes, SINGLE_SCALE))


def conditional_detr(classes: Classes) -> PreTrainedConfig:
    """Transformers' Conditional DETR. With a loss on every layer it feeds its final norm back into the decoder."""
    return ConditionalDetrConfig(d_model=WIDTH, **peer_fields(classes, SINGLE_SCALE))


def deformable_detr(classes: Classes) -> PreTrainedConfig:
    """Transformers' Deformable DETR with two stages and box refinement."""
    stages: dict[str, Any] = {
        "two_stage": True,
        "with_box_refine": True,
        "two_stage_num_proposals": 100,
        "num_feature_levels": 4,
        "class_cost": 2,  # as published
    }
    return DeformableDetrConfig(d_model=WIDTH, **stages, **peer_fields(classes, PYRAMID))


def rt_detr_v2(classes: Classes) -> PreTrainedConfig:
    """Transformers' RT-DETR v2; its denoising queries are a third of the published number too."""
    channels = [CHANNELS[index] for index in PYRAMID]
    widths: dict[str, Any] = {
        "encoder_hidden_dim": WIDTH,
        "encoder_in_channels": channels,
        "decoder_in_channels": [WIDTH] * 3,
    }
    own: dict[str, Any] = {"num_denoising": 33, "freeze_backbone_batch_norms": False}
    return RTDetrV2Config(d_model=WIDTH, **widths, **own, **peer_fields(classes, PYRAMID))


@dataclass(frozen=True)
class Detector:
    """A compared detector: its name in reports, its configuration for given classes, and what it starts from."""

    title: str
    configuration: Callable[[Classes], PreTrainedConfig]
    initial_values: Callable[[PreTrainedModel], None] | None = None
    source: str | None = None  # the detector, trained on the digits, whose weights it takes
    source_fields: Mapping[str, Any] = field(default_factory=dict)  # of its configuration, beside the source's
    pyramid: bool = False  # whether it sees several feature maps
    settings: Mapping[str, Any] = field(default_factory=dict)  # of its training, where they differ from the others'


DENOISING = {**CORRECTED, "denoising_pairs": DENOISING_PAIRS}
DETECTORS = {
    "sap-detr": Detector("SAP-DETR as released", sap_detr),
    "corrections": Detector("SAP-DETR, corrections", partial(sap_detr, **CORRECTED)),
    "denoising-0.4": Detector(
        "SAP-DETR, corrections, denoising (box noise 0.4)", partial(sap_detr, **DENOISING, denoising_box_noise=0.4)
    ),
    "denoising": Detector(
        "SAP-DETR, corrections, denoising (box noise 1.0)", partial(sap_detr, **DENOISING, denoising_box_noise=1.0)
    ),
    "groups": Detector("SAP-DETR, corrections, 3 groups", partial(sap_detr, **CORRECTED, num_groups=3)),
    "plus": Detector(
        "SAP-DETR, corrections, denoising, 2 groups (as r50-plus)",
        partial(sap_detr, **DENOISING, denoising_box_noise=0.4, num_groups=2),
    ),
    "plus-1.0": Detector(
        "SAP-DETR, corrections, denoising (box noise 1.0), 2 groups",
        partial(sap_detr, **DENOISING, denoising_box_noise=1.0, num_groups=2),
    ),
    "plus-3": Detector(
        "SAP-DETR, corrections, denoising (box noise 1.0), 3 groups",
        partial(sap_detr, **DENOISING, denoising_box_noise=1.0, num_groups=3),
    ),
    "sap-detr-warm": Detector(
        "SAP-DETR from DAB-DETR trained on the digits",
        sap_detr,
        source="dab-detr",
        source_fields={"query_grid": (10, 10)},
    ),
    "sap-dino": Detector("SAP-DINO-DETR", partial(sap_dino, denoising_pairs=DENOISING_PAIRS), pyramid=True),
    "sap-dino-0.4": Detector(
        "SAP-DINO-DETR, box noise 0.4",
        partial(sap_dino, denoising_pairs=DENOISING_PAIRS, denoising_box_noise=0.4),
        pyramid=True,
    ),
    "sap-dino-warm": Detector(
        "SAP-DINO-DETR from Deformable DETR trained on the digits",
        sap_dino,
        source="deformable-detr",
        source_fields={"num_queries": 300, "denoising_pairs": DENOISING_PAIRS},
        pyramid=True,
    ),
    "sap-dino-varifocal": Detector(
        "SAP-DINO-DETR, varifocal class loss",
        partial(sap_dino, denoising_pairs=DENOISING_PAIRS, class_loss="varifocal"),
        pyramid=True,
    ),
    "sap-dino-strong": Detector(
        "SAP-DINO-DETR, strong augmentation",
        partial(sap_dino, denoising_pairs=DENOISING_PAIRS),
        pyramid=True,
        settings={"augmentation": "strong"},
    ),
    "sap-dino-plain": Detector("SAP-DINO-DETR without denoising", partial(sap_dino, denoising_pairs=0), pyramid=True),
    "dab-detr": Detector("DAB-DETR", dab_detr, authors_initial_values),
    "dab-detr-transformers": Detector("DAB-DETR with transformers' initial values", dab_detr),
    "conditional-detr": Detector("Conditional DETR", conditional_detr, authors_initial_values),
    "deformable-detr": Detector(
        "Deformable DETR (two-stage, box refinement)", deformable_detr, authors_initial_values, pyramid=True
    ),
    "rt-detr-v2": Detector("RT-DETR v2", rt_detr_v2, authors_initial_values, pyramid=True),
}


def build_detector(name: str, classes: Classes, seed: int, source: str | None = None) -> PreTrainedModel:
    """One of `DETECTORS` with a random transformer, drawn from `seed`, and the ImageNet backbone.

    With `source`, it takes what fits from the trained detector in this directory instead.
    """
    set_seed(seed)
    detector = DETECTORS[name]
    if source is not None:
        return warm_start(source, frozen_backbone_stages=0, **detector.source_fields, **classes).model
    model = AutoModelForObjectDetection.from_config(detector.configuration(classes))
    if detector.initial_values is not None:
        detector.initial_values(model)
    holder = nn.Module()
    holder.backbone = AutoBackbone.from_config(TimmBackboneConfig(**backbone_config(PYRAMID)))
    load_backbone_weights(holder, PACKAGED)
    pretrained = holder.get_submodule("backbone._backbone")
    weights = pretrained.state_dict()
    network = timm_network(model, type(pretrained))
    network.load_state_dict({key: weights[key] for key in network.state_dict()})
    return model


def timm_network(model: PreTrainedModel, kind: type[nn.Module]) -> nn.Module:
    """The one timm network of a detector, which families keep in different places."""
    (network,) = (module for module in model.modules() if isinstance(module, kind))
    return network


def without_backbone(model: PreTrainedModel) -> int:
    """How many numbers a detector learns outside its backbone."""
    names = dict(model.named_parameters())
    return sum(names[name].numel() for name in names if "backbone" not in name.split("."))
