"""Tensor names: released SAP-DETR checkpoints and torchvision ResNets -> this package's models."""

import re
from collections.abc import Callable

import torch

_Rules = list[tuple[str, str | Callable[[re.Match], str]]]

# The first pattern that matches a whole name renames it.
_SHARED_RULES: _Rules = [  # the second copy of a shared tensor -> the first
    (r"transformer\.decoder\.((?:bbox_embed|point_embed|ref_bbox_head|ref_point_head)\..*)", r"\1"),
    (r"class_embed\.(?![01]\.)\d+\.(.*)", r"class_embed.1.\1"),
]

_MODEL_RULES: _Rules = [
    (r"class_embed\.([01])\.(.*)", r"class_heads.\1.\2"),
    (r"obj_embed\.(.*)", r"objectness_head.\1"),
    (r"refpoint_embed\.weight", "model.query_points.weight"),
    (r"refbbox_embed\.weight", "model.query_sides.weight"),
    (r"input_proj\.(.*)", r"model.input_projection.\1"),
    (r"ref_point_head\.(.*)", r"model.decoder.point_position_head.\1"),
    (r"ref_bbox_head\.(.*)", r"model.decoder.box_position_head.\1"),
    (r"bbox_embed\.(\d+)\.(.*)", r"model.decoder.side_heads.\1.\2"),
    (r"point_embed\.(\d+)\.(.*)", r"model.decoder.point_heads.\1.\2"),
    (r"transformer\.point_transfer\.(\d)\.(.*)", lambda m: _content_module(int(m[1])) + m[2]),
    (r"transformer\.encoder\.query_scales\.(\d+)\.(.*)", r"model.encoder.layers.\1.position_scale.\2"),
    (r"transformer\.decoder\.norm\.(.*)", r"model.decoder.layer_norm.\1"),
    (r"transformer\.decoder\.query_scale\.(.*)", r"model.decoder.query_scale.\1"),
    (r"transformer\.(encoder|decoder)\.layers\.(\d+)\.(.*)", lambda m: _layer_tensor(m[1], m[2], m[3])),
]

_LAYER_RULES: _Rules = [
    (r"self_attn\.(.*)", r"self_attn.\1"),
    (r"linear([12])\.(.*)", r"ffn.fc\1.\2"),
    (r"activation\.(.*)", r"ffn.activation.\1"),
    (r"norm1\.(.*)", r"self_attn_layer_norm.\1"),
]

_ENCODER_LAYER_RULES: _Rules = [*_LAYER_RULES, (r"norm2\.(.*)", r"ffn.layer_norm.\1")]

_DECODER_LAYER_RULES: _Rules = [
    *_LAYER_RULES,
    (r"sa_([qk])content_proj\.(.*)", r"self_attn.\1_content_proj.\2"),
    (r"sa_point_([qk])pos_proj\.(.*)", r"self_attn.\1_point_proj.\2"),
    (r"sa_bbox_([qk])pos_proj\.(.*)", r"self_attn.\1_box_proj.\2"),
    (r"sa_v_proj\.(.*)", r"self_attn.v_proj.\1"),
    (r"cross_attn\.(.*)", r"cross_attn.\1"),
    (r"ca_([qk])content_proj\.(.*)", r"cross_attn.\1_content_proj.\2"),
    (r"ca_kpos_proj\.(.*)", r"cross_attn.k_position_proj.\1"),
    (r"ca_v_proj\.(.*)", r"cross_attn.v_proj.\1"),
    (r"ca_qpos_sine_proj\.(.*)", r"cross_attn.q_point_sine_proj.\1"),
    (r"ca_bbox_qpos_sine_proj\.(.*)", r"cross_attn.q_box_sine_proj.\1"),
    (r"ca_point_qpos_proj\.(.*)", r"cross_attn.q_point_proj.\1"),
    (r"ca_bbox_qpos_proj\.(.*)", r"cross_attn.q_box_proj.\1"),
    (r"gaussian_proj\.(.*)", r"gaussian.proj.\1"),
    (r"norm2\.(.*)", r"cross_attn_layer_norm.\1"),
    (r"norm3\.(.*)", r"ffn.layer_norm.\1"),
]

_RESNET_RULES: _Rules = [
    (r"conv1\.(.*)", r"embedder.embedder.convolution.\1"),
    (r"bn1\.(.*)", r"embedder.embedder.normalization.\1"),
    (r"layer(\d)\.(\d+)\.conv(\d)\.(.*)", lambda m: f"{_block(m)}.layer.{int(m[3]) - 1}.convolution.{m[4]}"),
    (r"layer(\d)\.(\d+)\.bn(\d)\.(.*)", lambda m: f"{_block(m)}.layer.{int(m[3]) - 1}.normalization.{m[4]}"),
    (r"layer(\d)\.(\d+)\.downsample\.0\.(.*)", lambda m: f"{_block(m)}.shortcut.convolution.{m[3]}"),
    (r"layer(\d)\.(\d+)\.downsample\.1\.(.*)", lambda m: f"{_block(m)}.shortcut.normalization.{m[3]}"),
]


def _block(match: re.Match) -> str:
    return f"encoder.stages.{int(match[1]) - 1}.layers.{match[2]}"


def _content_module(index: int) -> str:
    """The content convolutions are one Sequential: convolution, norm, ReLU, three times over."""
    kind = ("convolutions", "norms")[index % 3]
    return f"model.query_content.{kind}.{index // 3}."


def _layer_tensor(side: str, layer: str, rest: str) -> str:
    rules = _ENCODER_LAYER_RULES if side == "encoder" else _DECODER_LAYER_RULES
    return f"model.{side}.layers.{layer}.{_rename(rest, rules)}"


def _rename(name: str, rules: _Rules) -> str:
    for pattern, replacement in rules:
        if match := re.fullmatch(pattern, name):
            return replacement(match) if callable(replacement) else match.expand(replacement)
    raise KeyError(name)


def resnet_name(name: str) -> str:
    """A torchvision (or timm) ResNet tensor's name in transformers' `ResNetBackbone`.

    Raises:
        KeyError: no such tensor in a ResNet's body.
    """
    return _rename(name, _RESNET_RULES)


def released_name(name: str) -> str:
    """A released tensor's name in [`SapDetrForObjectDetection`].

    Raises:
        KeyError: not a tensor of the released model, or the second copy of a shared one, see [`shared_source`].
    """
    if name.startswith("backbone.0.body."):
        return "model.backbone." + resnet_name(name.removeprefix("backbone.0.body."))
    return _rename(name, _MODEL_RULES)


def split_attention_projection(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """The released encoder's fused `in_proj_weight` (3d, d) or `in_proj_bias` (3d,) as q, k and v."""
    prefix, kind = name.split("in_proj_")
    return {f"{prefix}{part}_proj.{kind}": chunk.clone() for part, chunk in zip("qkv", tensor.chunk(3), strict=True)}


def shared_source(name: str) -> str | None:
    """The released tensor that a shared tensor repeats, or `None` for a tensor of its own."""
    try:
        return _rename(name, _SHARED_RULES)
    except KeyError:
        return None
