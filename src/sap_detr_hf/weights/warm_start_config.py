"""Build the configuration for a warm start from another detector of transformers."""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from ..model.detector_configuration import check_field_names
from .pretrained import readable_model
from .resnets import RESNETS, resnet_config
from .warm_start_names import WARM_START_SOURCES, WarmStartSource


def read_source(source: str) -> tuple[PreTrainedConfig, WarmStartSource]:
    """Read the configuration of a source, a directory or Hub id, and how detectors of its kind fit.

    Raises:
        OSError: there is no such model.
        ValueError: no model starts from a detector of this kind.
    """
    with readable_model(source):
        config = AutoConfig.from_pretrained(source)
    kind = WARM_START_SOURCES.get(config.model_type)
    if kind is None:
        raise ValueError(
            f"{source} is a {config.model_type!r} model; a SAP-DETR can start from {', '.join(WARM_START_SOURCES)}."
        )
    return config, kind


def started_config(source: str, **overrides: Any) -> PreTrainedConfig:
    """The configuration of the model that starts from a source: classes, widths and depths follow it.

    Raises:
        OSError: there is no such model.
        ValueError: a model that does not fit, with the reason; or an override that is no field.
    """
    theirs, kind = read_source(source)
    for name, allowed in kind.required.items():
        if getattr(theirs, name) not in allowed:
            raise ValueError(
                f"{source} cannot be used for a warm start: its `{name}` is {getattr(theirs, name)!r}, "
                f"not {allowed[0]!r}."
            )
    if getattr(theirs, "temperature_width", None) != getattr(theirs, "temperature_height", None):
        raise ValueError(f"{source} cannot be used for a warm start: its temperatures of height and width differ.")
    backbone: Any = theirs.backbone_config
    fields: dict[str, Any] = {
        **_backbone_fields(source, backbone, uses_all_maps=kind.configuration.uses_pyramid),
        **{ours: getattr(theirs, of) if isinstance(of, str) else of for ours, of in kind.fields.items()},
        "id2label": dict(theirs.id2label or {}),
        "num_channels": backbone.num_channels,
    }
    check_field_names(kind.configuration, overrides)
    return kind.configuration(**{**fields, **overrides})


def _backbone_fields(source: str, backbone: Any, uses_all_maps: bool) -> dict[str, Any]:
    """`backbone_config` and `dilation` of what the source computes: a timm ResNet becomes transformers' own."""
    if backbone.model_type == "resnet":  # transformers' ResNet cannot be dilated
        maps = backbone.out_features if uses_all_maps else backbone.out_features[-1:]
        fields = {**backbone.to_dict(), "out_features": maps}
        fields.pop("out_indices", None)
        return {"backbone_config": fields} if uses_all_maps else {"backbone_config": fields, "dilation": False}
    name = (getattr(backbone, "backbone", None) or "").split(".")[0]
    stride = getattr(backbone, "output_stride", None) or 32
    strides = (32,) if uses_all_maps else (16, 32)
    # Other networks of timm only where timm froze the BatchNorm: transformers' own freezing drops their activations.
    if backbone.model_type == "timm_backbone" and name not in RESNETS and backbone.freeze_batch_norm_2d:
        maps = list(backbone.out_indices) if uses_all_maps else list(backbone.out_indices)[-1:]
        fields = {**backbone.to_dict(), "out_indices": maps, "use_pretrained_backbone": False}
        fields.pop("out_features", None)
        return {"backbone_config": fields}
    if backbone.model_type != "timm_backbone" or name not in RESNETS or stride not in strides:
        raise ValueError(
            f"{source} cannot be used for a warm start: its backbone is {name or backbone.model_type!r} with the "
            f"output stride {stride}; it must be one of {', '.join(RESNETS)} "
            f"with {' or '.join(map(str, reversed(strides)))}."
        )
    if uses_all_maps:
        maps = [f"stage{index}" for index in backbone.out_indices]  # timm's 0 is the stem
        return {"backbone_config": {**resnet_config(name), "out_features": maps}}
    return {"backbone_config": resnet_config(name), "dilation": stride == 16}
