# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Shared code of all configurations: common fields, variants by name, the backbone's own configuration, checks."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging

from .coco_labels import COCO_ID2LABEL

logger = logging.get_logger(__name__)

SAVED_BESIDE = {"model_type", "auto_map", "quantization_config", "torch_dtype"}  # in config.json, but no fields


class DetectorConfig(PreTrainedConfig):
    """Variants by name, and the fields and checks of a detector with a backbone, an encoder and a decoder.

    [`SapDetrConfig`] explains the fields.

    Attributes:
        variants: by name, what distinguishes each from the class's defaults.
        uses_pyramid: whether all feature maps of the backbone are levels of a pyramid, or only the last is used.
        selects_queries: whether an image's queries are its best tokens, in no order of their own.
        way_to_more_queries: advice for images with more objects than queries.
        without_training_queries: fields that remove all parts used only in training.
    """

    variants: ClassVar[dict[str, dict[str, Any]]]
    uses_pyramid: ClassVar[bool] = False
    selects_queries: ClassVar[bool] = False
    way_to_more_queries: ClassVar[str]
    without_training_queries: ClassVar[dict[str, Any]] = {"denoising_pairs": 0}
    sub_configs = {"backbone_config": AutoConfig}
    keys_to_ignore_at_inference = [
        "loss_dict",
        "auxiliary_outputs",
        "last_hidden_state",
        "intermediate_hidden_states",
        "intermediate_reference_points",
        "intermediate_box_sides",
        "encoder_last_hidden_state",
    ]
    attribute_map = {
        "hidden_size": "d_model",
        "num_attention_heads": "encoder_attention_heads",
        "num_hidden_layers": "encoder_layers",
    }

    backbone_config: dict | PreTrainedConfig | None = None
    freeze_backbone_batch_norm: bool = True
    frozen_backbone_stages: int = 1
    num_channels: int = 3
    d_model: int = 256
    encoder_layers: int = 6
    encoder_attention_heads: int = 8
    encoder_ffn_dim: int = 2048
    decoder_layers: int = 6
    decoder_attention_heads: int = 8
    decoder_ffn_dim: int = 2048
    activation_function: str = "relu"
    dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    position_temperature: float | int = 20.0
    auxiliary_loss: bool = True
    class_cost: float | int = 2.0
    bbox_cost: float | int = 5.0
    giou_cost: float | int = 2.0
    outside_cost: float | int = 9999.0
    class_loss_coefficient: float | int = 1.0
    objectness_loss_coefficient: float | int = 1.0
    bbox_loss_coefficient: float | int = 5.0
    giou_loss_coefficient: float | int = 2.0
    inner_loss_coefficient: float | int = 2.0
    class_loss: Literal["focal", "varifocal"] = "focal"
    focal_alpha: float | int = 0.25
    focal_gamma: float | int = 2.0
    denoising_pairs: int = 0
    denoising_label_noise: float | int = 0.25
    denoising_point_noise: float | int = 1.0
    denoising_box_noise: float | int = 0.4
    denoising_outside_share: float | int = 0.5
    denoising_loss_coefficient: float | int = 1.0
    inference_only: bool = False
    category_ids: list[int] | None = None
    is_encoder_decoder: bool = True
    tie_word_embeddings: bool = False

    @classmethod
    def from_variant(cls, name: str, **overrides):
        """The configuration of one of `variants`, with the 91 COCO class slots; `overrides` change its fields.

        Raises:
            ValueError: no such variant, or an override that is no field.
        """
        if name not in cls.variants:
            raise ValueError(f"Unknown SAP-DETR variant {name!r}: choose one of {', '.join(cls.variants)}.")
        check_field_names(cls, overrides)
        fields: dict[str, Any] = {"id2label": dict(COCO_ID2LABEL), **cls.variants[name], **overrides}
        if "num_labels" in overrides and "id2label" not in overrides:
            del fields["id2label"]
        return cls(**fields)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """Like the base method, but saved `category_ids` are dropped where `kwargs` give other classes.

        Indices in `id2label` may be text, as JSON has them. A saved field that this version does not have is kept, with
        a warning.
        """
        if unknown := sorted(_unknown_fields(cls, config_dict) - SAVED_BESIDE):
            logger.warning_once(
                f"The saved configuration has {', '.join(f'`{name}`' for name in unknown)}, which this version of "
                f"{cls.__name__} does not know and does not use: the model may come from a newer version."
            )
        saved = config_dict.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"}  # transformers does not save its default
        saved = {int(index): name for index, name in saved.items()}
        if kwargs.get("id2label") is not None:
            kwargs["id2label"] = {int(index): name for index, name in kwargs["id2label"].items()}
        wanted = kwargs.get("id2label") or saved
        if kwargs.get("num_labels", len(wanted)) != len(saved) or wanted != saved:
            config_dict = {**config_dict, "category_ids": None}
        return super().from_dict(config_dict, **kwargs)

    def validate_transformer(self):
        """Heads divide the width, and there is a layer of each kind."""
        for side in ("encoder", "decoder"):
            heads = getattr(self, f"{side}_attention_heads")
            if heads < 1 or self.d_model % heads:
                raise ValueError(
                    f"`d_model` = {self.d_model} cannot be split into `{side}_attention_heads` = {heads} equal heads: "
                    "change one of the two so that the division leaves no remainder."
                )
        if min(self.encoder_layers, self.decoder_layers) < 1:
            raise ValueError("`encoder_layers` and `decoder_layers` must both be at least 1.")

    def validate_backbone(self):
        """Frozen stages and channels are possible with this backbone."""
        if self.frozen_backbone_stages < 0:
            raise ValueError(f"`frozen_backbone_stages` = {self.frozen_backbone_stages} must be 0 or more.")
        channels = getattr(self.backbone_config, "num_channels", self.num_channels)
        if channels != self.num_channels:
            raise ValueError(
                f"`num_channels` = {self.num_channels} but the backbone's configuration takes {channels} channels: "
                "set both to the same number."
            )

    def validate_denoising(self):
        """Denoising queries are possible."""
        for name in ("denoising_pairs", "denoising_box_noise", "denoising_loss_coefficient"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` = {getattr(self, name)} must be 0 or more.")
        for name in ("denoising_label_noise", "denoising_point_noise", "denoising_outside_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` = {getattr(self, name)} must lie between 0 and 1.")

    def validate_category_ids(self):
        """One category id for each class."""
        if self.category_ids is None:
            return
        classes = self.num_labels
        if len(self.category_ids) != classes or len(set(self.category_ids)) != len(self.category_ids):
            raise ValueError(
                f"`category_ids` must hold one distinct id for each of the {classes} classes in `id2label`, "
                f"not {len(set(self.category_ids))} distinct of {len(self.category_ids)} ids."
            )


def check_field_names(config_class: Any, fields: Mapping[str, Any]) -> None:
    """Refuse fields that a configuration does not have; transformers would store and ignore them.

    Of the backbone's fields only misspelt ones: backbones take further names than their configurations list.

    Raises:
        ValueError: for such a name; the message has the nearest field.
    """
    for name in sorted(_unknown_fields(config_class, fields)):
        nearest = difflib.get_close_matches(name, _field_names(config_class), n=1)
        advice = f"the nearest one is `{nearest[0]}`" if nearest else "its docstring lists them"
        raise ValueError(f"`{name}` is not a field of {config_class.__name__}: {advice}.")
    backbone = fields.get("backbone_config")
    if isinstance(backbone, Mapping) and backbone.get("model_type") in CONFIG_MAPPING:
        known = CONFIG_MAPPING[backbone["model_type"]]().to_dict()
        for name in sorted(backbone.keys() - known):
            if nearest := difflib.get_close_matches(name, known, n=1, cutoff=0.8):
                raise ValueError(f"`{name}` is not a field of `backbone_config`: the nearest one is `{nearest[0]}`.")


def _field_names(config_class: Any) -> set[str]:
    fields = {field.name for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    return fields | set(config_class.attribute_map) | {"num_labels", "attn_implementation", "output_attentions"}


def _unknown_fields(config_class: Any, names: Iterable[str]) -> set[str]:
    return {name for name in names if not name.startswith("_")} - _field_names(config_class)


def resolve_backbone_config(backbone_config: dict | PreTrainedConfig | None, default: dict) -> PreTrainedConfig:
    """The configuration of a backbone, from its fields with `model_type` or, for `None`, from those of `default`.

    Raises:
        ValueError: transformers does not know the `model_type`.
    """
    if isinstance(backbone_config, PreTrainedConfig):
        return backbone_config
    fields = dict(backbone_config if backbone_config is not None else default)
    model_type = fields.pop("model_type", None)
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"`backbone_config` has `model_type` = {model_type!r}, which transformers does not know: name a backbone's "
            "type, for instance 'resnet' or 'timm_backbone'."
        )
    return CONFIG_MAPPING[model_type].from_dict(fields)
