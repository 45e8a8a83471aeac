# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Shared code of all configurations: variants by name, the backbone's own configuration, and checks."""

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any, ClassVar

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging

from .coco_labels import COCO_ID2LABEL

logger = logging.get_logger(__name__)

SAVED_BESIDE = {"model_type", "auto_map", "quantization_config", "torch_dtype"}  # in config.json, but no fields


class DetectorConfigMixin:
    """Variants by name, and the checks of a detector with a backbone, an encoder and a decoder.

    Attributes:
        variants: by name, what distinguishes each from the class's defaults.
    """

    variants: ClassVar[dict[str, dict[str, Any]]]
    backbone_config: Any
    frozen_backbone_stages: int
    num_channels: int
    d_model: int
    encoder_layers: int
    decoder_layers: int
    category_ids: list[int] | None

    @classmethod
    def from_variant(cls, name: str, **overrides):
        """The configuration of a named variant, with the 91 COCO class slots.

        Args:
            name: one of `variants`.
            overrides: fields to change.

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
        return super().from_dict(config_dict, **kwargs)  # type: ignore[misc]

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


def check_field_names(config_class: Any, names: Iterable[str]) -> None:
    """Refuse fields that a configuration does not have; transformers would store and ignore them.

    Raises:
        ValueError: for such a name; the message has the nearest field.
    """
    for name in sorted(_unknown_fields(config_class, names)):
        nearest = difflib.get_close_matches(name, _field_names(config_class), n=1)
        advice = f"the nearest one is `{nearest[0]}`" if nearest else "its docstring lists them"
        raise ValueError(f"`{name}` is not a field of {config_class.__name__}: {advice}.")


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
