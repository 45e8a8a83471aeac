"""Tensor names: this package's base models -> the detector of transformers whose tensor they can start from.

Names of transformers 5.23 *after* loading, without the leading `model.`; those in the checkpoint files differ. A tensor
of ours that no rule matches is newly initialized, because the source trained it with another temperature, another order
or for other boxes.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any

from ..model.configuration_sap_detr import SapDetrConfig
from ..model.configuration_sap_dino_detr import SapDinoDetrConfig
from ..model.detector_configuration import DetectorConfig

_Rules = tuple[tuple[str, str, float], ...]


@dataclass(frozen=True)
class WarmStartSource:
    """How the detectors of one `model_type` fit.

    Args:
        backbone: what their backbone's names begin with.
        rules: (pattern of ours, their name, factor). The first pattern that matches a whole name counts. Our cross-
            attention divides by sqrt(3 d / H), theirs by sqrt(2 d / H) or sqrt(d / H): the factor compensates.
        fields: of our configuration: a field of theirs by its name, or a value.
        configuration: of the model that starts from them.
        constant_position_scale: whether their content does not scale the encoder's positions: the scale of ours then
            starts as the constant 1.
        required: fields of their configuration that must have one of these values.
        box_rules: further rules, for the decoder layers whose sampling follows a box, see [`first_box_layer`].
    """

    backbone: str
    rules: _Rules
    fields: dict[str, Any]
    configuration: type[DetectorConfig] = SapDetrConfig
    constant_position_scale: bool = False
    required: dict[str, tuple[object, ...]] = field(default_factory=dict)
    box_rules: _Rules = ()

    def rules_for(self, config: Any) -> _Rules:
        """The rules for a source with this configuration."""
        if not self.box_rules:
            return self.rules
        layers = "|".join(map(str, range(first_box_layer(config), config.decoder_layers)))
        boxes = ((ours.replace("BOX_LAYERS", layers or "none"), theirs, by) for ours, theirs, by in self.box_rules)
        return (*self.rules, *boxes)


def first_box_layer(config: Any) -> int:
    """The first decoder layer of a Deformable DETR whose sampling points are shares of its query's box.

    Before it, queries are points, and sampling points are so many tokens away from them.
    """
    if config.two_stage:
        return 0
    return 1 if config.with_box_refine else config.decoder_layers


_TWO_PARTS = math.sqrt(3 / 2)  # their cross-attention has [content; position], ours [content; point; box]
_ONE_PART = math.sqrt(3)

_INPUT = (
    (r"backbone\.(.*)", r"backbone.\1", 1.0),
    (r"input_projection\.(.*)", r"input_projection.\1", 1.0),
    (r"decoder\.layer_norm\.(.*)", r"decoder.layernorm.\1", 1.0),
)

_DAB_ENCODER = (
    (r"encoder\.layers\.\d+\.position_scale\.(.*)", r"encoder.query_scale.\1", 1.0),  # one for all their layers
    (r"encoder\.(layers\.\d+\.self_attn.*)", r"encoder.\1", 1.0),
    (r"encoder\.(layers\.\d+)\.ffn\.(fc[12].*)", r"encoder.\1.\2", 1.0),
    (r"encoder\.(layers\.\d+)\.ffn\.layer_norm\.(.*)", r"encoder.\1.final_layer_norm.\2", 1.0),
    (r"encoder\.(layers\.\d+)\.ffn\.activation\.(.*)", r"encoder.\1.activation_fn.\2", 1.0),
)

_DAB_DECODER = tuple(
    (rf"decoder\.(layers\.\d+)\.{ours}\.(.*)", rf"decoder.\1.{theirs}.\2", factor)
    for ours, theirs, factor in (
        (r"self_attn\.q_content_proj", "self_attn.self_attn_query_content_proj", 1.0),
        (r"self_attn\.k_content_proj", "self_attn.self_attn_key_content_proj", 1.0),
        (r"self_attn\.v_proj", "self_attn.self_attn_value_proj", 1.0),
        (r"self_attn\.out_proj", "self_attn.self_attn.output_proj", 1.0),
        (r"self_attn_layer_norm", "self_attn.self_attn_layer_norm", 1.0),
        (r"cross_attn\.q_content_proj", "cross_attn.cross_attn_query_content_proj", _TWO_PARTS),
        (r"cross_attn\.k_content_proj", "cross_attn.cross_attn_key_content_proj", 1.0),
        (r"cross_attn\.k_position_proj", "cross_attn.cross_attn_key_pos_proj", 1.0),
        (r"cross_attn\.v_proj", "cross_attn.cross_attn_value_proj", 1.0),
        (r"cross_attn\.out_proj", "cross_attn.cross_attn.output_proj", 1.0),
        (r"cross_attn_layer_norm", "cross_attn.cross_attn_layer_norm", 1.0),
        (r"ffn\.fc1", "mlp.fc1", 1.0),
        (r"ffn\.fc2", "mlp.fc2", 1.0),
        (r"ffn\.activation", "mlp.activation_fn", 1.0),
        (r"ffn\.layer_norm", "mlp.final_layer_norm", 1.0),
    )
)

# DETR and Conditional DETR name these alike.
_DETR_LAYERS = (
    (r"encoder\.(layers\.\d+\.self_attn\.[qkv]_proj.*)", r"encoder.\1", 1.0),
    (r"((?:en|de)coder\.layers\.\d+\.self_attn)\.out_proj\.(.*)", r"\1.o_proj.\2", 1.0),
    (r"((?:en|de)coder\.layers\.\d+\.self_attn_layer_norm\..*)", r"\1", 1.0),
    (r"((?:en|de)coder\.layers\.\d+)\.ffn\.(fc[12].*)", r"\1.mlp.\2", 1.0),
    (r"((?:en|de)coder\.layers\.\d+)\.ffn\.layer_norm\.(.*)", r"\1.final_layer_norm.\2", 1.0),
    (r"((?:en|de)coder\.layers\.\d+)\.ffn\.activation\.(.*)", r"\1.mlp.activation_fn.\2", 1.0),
    (r"(decoder\.layers\.\d+\.self_attn\.v_proj\..*)", r"\1", 1.0),
    (r"(decoder\.layers\.\d+)\.cross_attn\.v_proj\.(.*)", r"\1.encoder_attn.v_proj.\2", 1.0),
    (r"(decoder\.layers\.\d+)\.cross_attn\.out_proj\.(.*)", r"\1.encoder_attn.o_proj.\2", 1.0),
    (r"(decoder\.layers\.\d+)\.cross_attn_layer_norm\.(.*)", r"\1.encoder_attn_layer_norm.\2", 1.0),
)

_CONDITIONAL_DECODER = (
    (r"(decoder\.layers\.\d+\.self_attn\.[qk]_content_proj\..*)", r"\1", 1.0),
    (r"(decoder\.layers\.\d+)\.cross_attn\.q_content_proj\.(.*)", r"\1.encoder_attn.q_content_proj.\2", _TWO_PARTS),
    (r"(decoder\.layers\.\d+)\.cross_attn\.k_content_proj\.(.*)", r"\1.encoder_attn.k_content_proj.\2", 1.0),
    (r"(decoder\.layers\.\d+)\.cross_attn\.k_position_proj\.(.*)", r"\1.encoder_attn.k_pos_proj.\2", 1.0),
)

# DETR projects content and position by one matrix: it becomes the content's.
_DETR_DECODER = (
    (r"(decoder\.layers\.\d+\.self_attn\.[qk])_content_proj\.(.*)", r"\1_proj.\2", 1.0),
    (r"(decoder\.layers\.\d+)\.cross_attn\.q_content_proj\.(.*)", r"\1.encoder_attn.q_proj.\2", _ONE_PART),
    (r"(decoder\.layers\.\d+)\.cross_attn\.k_content_proj\.(.*)", r"\1.encoder_attn.k_proj.\2", 1.0),
)

# Queries are made of [positions; content] there and here of learned content beside selected points: they start anew.
_DEFORMABLE = (
    (r"input_projection\.convolutions\.(\d+)\.(.*)", r"input_proj.\1.0.\2", 1.0),
    (r"input_projection\.norms\.(\d+)\.(.*)", r"input_proj.\1.1.\2", 1.0),
    (r"level_embeddings\.weight", "level_embed", 1.0),
    (
        r"(encoder\.layers\.\d+\.self_attn\.(?:sampling_offsets|attention_weights|value_proj|output_proj)\..*)",
        r"\1",
        1.0,
    ),
    (r"(decoder\.layers\.\d+\.self_attn\.[qk]_proj\..*)", r"\1", 1.0),
    (r"(decoder\.layers\.\d+)\.cross_attn\.((?:value|output)_proj\..*)", r"\1.encoder_attn.\2", 1.0),
    (r"selection\.projection\.(.*)", r"enc_output.\1", 1.0),  # of two-stage models alone
    (r"selection\.layer_norm\.(.*)", r"enc_output_norm.\1", 1.0),
)
_DEFORMABLE_BOXES = (
    (
        r"(decoder\.layers\.(?:BOX_LAYERS))\.cross_attn\.((?:sampling_offsets|attention_weights)\..*)",
        r"\1.encoder_attn.\2",
        1.0,
    ),
)

_SIDE_FIELDS = [
    f"{side}_{name}" for side in ("encoder", "decoder") for name in ("layers", "attention_heads", "ffn_dim")
]
_FIELDS = {"d_model": "hidden_size", **{name: name for name in ("activation_function", *_SIDE_FIELDS)}}

_DETR = WarmStartSource(
    backbone="backbone.model.",
    rules=(*_INPUT, *_DETR_LAYERS, *_DETR_DECODER),
    fields={**_FIELDS, "position_temperature": 10000.0},
    constant_position_scale=True,
    required={"position_embedding_type": ("sine",)},
)
WARM_START_SOURCES: dict[str, WarmStartSource] = {
    "dab-detr": WarmStartSource(
        backbone="backbone.conv_encoder.model.",
        rules=(*_INPUT, *_DAB_ENCODER, *_DAB_DECODER),
        fields={**_FIELDS, "position_temperature": "temperature_height"},
        required={"normalize_before": (False,), "sine_position_embedding_scale": (None, 2 * math.pi)},
    ),
    "detr": _DETR,
    "conditional_detr": replace(_DETR, rules=(*_INPUT, *_DETR_LAYERS, *_CONDITIONAL_DECODER)),
    "deformable_detr": WarmStartSource(
        backbone="backbone.model.",
        rules=(*_INPUT[:1], *_DEFORMABLE, *_DETR_LAYERS),
        fields={
            **_FIELDS,
            **{name: name for name in ("num_feature_levels", "encoder_n_points", "decoder_n_points")},
            "token_position_temperature": 10000.0,
            "token_position_offset": 0.5,
        },
        configuration=SapDinoDetrConfig,
        required={"position_embedding_type": ("sine",), "dilation": (False,)},
        box_rules=_DEFORMABLE_BOXES,
    ),
}
"""By `model_type`."""
