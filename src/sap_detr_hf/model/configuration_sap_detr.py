# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""SAP-DETR model configuration (paper: SAP-DETR, CVPR 2023, arXiv 2211.02006)."""

import math
from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from .detector_configuration import DetectorConfig, resolve_backbone_config

R50_BACKBONE = {"model_type": "resnet", "out_features": ["stage4"]}
R101_BACKBONE = {**R50_BACKBONE, "depths": [3, 4, 23, 3]}

PUBLISHED_VARIANTS: dict[str, dict[str, Any]] = {
    "r50": {"backbone_config": R50_BACKBONE, "dilation": False},
    "r50-dc5": {"backbone_config": R50_BACKBONE, "dilation": True},
    "r101": {"backbone_config": R101_BACKBONE, "dilation": False},
    "r101-dc5": {"backbone_config": R101_BACKBONE, "dilation": True},
}
"""Fields of the four published models that differ from the defaults of [`SapDetrConfig`]."""

# Without the released code's point rules, and with results that do not depend on the other images of a batch
CORRECTED: dict[str, Any] = {
    "point_start": "center", "point_update": "exact", "head_points": "current", "inner_loss": "distance",
    "valid_region": True,
}  # fmt: skip

FURTHER_VARIANTS: dict[str, dict[str, Any]] = {
    "r50-group": {**PUBLISHED_VARIANTS["r50"], **CORRECTED, "num_groups": 11},
    "r50-dc5-group": {**PUBLISHED_VARIANTS["r50-dc5"], **CORRECTED, "num_groups": 5},
    "r50-dn": {**PUBLISHED_VARIANTS["r50"], **CORRECTED, "denoising_pairs": 50},
    "r50-plus": {**PUBLISHED_VARIANTS["r50"], **CORRECTED, "num_groups": 2, "denoising_pairs": 50},
}  # fmt: skip
"""Variants of this project, without published weights: they learn faster and cost the same in inference."""


@strict
class SapDetrConfig(DetectorConfig):
    r"""
    Configuration of [`SapDetrModel`] and [`SapDetrForObjectDetection`]. The defaults are the published SAP-DETR-R50.

    Args:
        backbone_config (`dict` or `PreTrainedConfig`, *optional*, defaults to ResNet-50 with `stage4`):
            Any configuration that `AutoBackbone.from_config` accepts; the last feature map is used.
        dilation (`bool`, defaults to `False`):
            DC5: the last stage keeps the resolution of the one before. Needs a transformers `resnet` backbone; for a
            timm backbone set `output_stride` in its own configuration.
        freeze_backbone_batch_norm (`bool`, defaults to `True`):
            Replace the backbone's BatchNorm by constants. Set to `False` to train a backbone from random weights.
        frozen_backbone_stages (`int`, defaults to 1):
            How many leading stages get no gradient; the stem is frozen with the first. 0 trains everything.
        num_channels (`int`, defaults to 3): Image channels, checked against the backbone's.
        num_queries (`int`, *optional*): Number of object queries; follows from `query_grid` and is checked against it.
        query_grid (`list[int]`, *optional*, defaults to `[17, 18]`):
            Rows and columns of the grid of reference points. Alone, `num_queries` = 306 means 17 x 18 and a square
            number r*r means r x r, as in the released code.
        sample_query_content (`bool`, defaults to `True`):
            Queries start with the encoder's output sampled at their reference points; otherwise with zeros.
        share_box_heads (`bool`, defaults to `False`): One side and one point head for all decoder layers, not one each.
        side_directed_gaussian (`bool`, defaults to `True`):
            Add the side-directed Gaussian to the cross-attention's logits; `False` is the paper's ablation without it.
        prediction_grid (`list[int]`, *optional*):
            Rows and columns of the grid whose cell size bounds the step of a *predicted* point, where it is not
            `query_grid`. Only for released checkpoints: their prediction heads divide by 20 for any number of queries
            but 306, while their decoder divides by the number of rows and columns.
        valid_region (`bool`, defaults to `False`):
            Place reference points, Gaussian and sampling on each image's valid region instead of on the padded map.
            The released checkpoints were trained on the padded map, where an image's result depends on the others in
            its batch; with this option it does not, up to the backbone's border.
        point_start (`"corner"` or `"center"`, defaults to `"corner"`):
            Where in its cell a query's point starts. In the corner it gets 250 times less gradient than in the center
            and hardly moves. `"center"` needs `point_update="exact"`: the released update throws the point back.
        point_update (`"released"` or `"exact"`, defaults to `"released"`):
            A layer adds to the logit of the point's place in its cell: measured in the image as in the released code,
            or in the cell, so that a change of zero leaves the point where it is.
        head_points (`"previous"` or `"current"`, defaults to `"previous"`):
            The heads of a layer refine the point that entered the layer before, as in the released code, or the one
            that entered the layer itself. The latter carries gradient to the layer before, as the sides always do.
        inner_loss (`"step"` or `"distance"`, defaults to `"step"`):
            Loss of a matched point outside its box: 1 without a gradient, or a bounded function of the distance.
        num_groups (`int`, defaults to 1):
            Groups of queries in training, each with box sides of its own and matched by itself, so that a box teaches
            as many queries (as Group DETR). In evaluation the first group is the whole model.
        group_content (`bool`, defaults to `False`): Learn a vector that each further group adds to its content.
        denoising_pairs (`int`, defaults to 0):
            Pairs of a positive and a negative denoising query for each image in training, see `denoising.py`.
        denoising_label_noise (`float`, defaults to 0.25): Share of denoising queries with a random class.
        denoising_point_noise (`float`, defaults to 1.0):
            How far, in halves of its box, a positive's point lies from the center at most; 1 is anywhere in the box.
        denoising_box_noise (`float`, defaults to 0.4): How far, in halves of its box, a corner moves at most.
        denoising_outside_share (`float`, defaults to 0.5):
            Share of negatives with a point outside the box; the others have larger errors in their sides.
        denoising_loss_coefficient (`float`, defaults to 1.0): Coefficient of all denoising losses.
        d_model (`int`, defaults to 256): Width of encoder, decoder and heads; a multiple of 4 and of the head counts.
        encoder_layers, decoder_layers (`int`, defaults to 6): Depths.
        encoder_attention_heads, decoder_attention_heads (`int`, defaults to 8): Attention heads.
        encoder_ffn_dim, decoder_ffn_dim (`int`, defaults to 2048): Widths of the feed-forward layers.
        activation_function (`str`, defaults to `"relu"`):
            Activation of the feed-forward layers, one of transformers' `ACT2FN`; `"prelu"` has a learned slope per
            layer.
        dropout, attention_dropout (`float`, defaults to 0.0): Dropout of the residual branches / attention weights.
        position_temperature (`float`, defaults to 20.0): Base of the sine embeddings' wave lengths.
        auxiliary_loss (`bool`, defaults to `True`): Sum the loss over all decoder layers, not only the last.
        class_cost, bbox_cost, giou_cost, outside_cost (`float`, defaults to 2, 5, 2, 9999):
            Matching cost coefficients; `outside_cost` counts for a reference point outside the target box.
        class_loss_coefficient, objectness_loss_coefficient, bbox_loss_coefficient, giou_loss_coefficient,
        inner_loss_coefficient (`float`, defaults to 1, 1, 5, 2, 2): Loss coefficients.
        class_loss (`str`, defaults to `"focal"`):
            `"varifocal"` teaches the class score of a matched query its IoU, see [`class_loss`] in `loss.py`.
        focal_alpha, focal_gamma (`float`, defaults to 0.25 and 2): Of the focal loss and the matching's class cost.
        inference_only (`bool`, defaults to `False`):
            The backbone's BatchNorm is part of its convolutions, and the model cannot be trained. Set by
            [`SapDetrModel.optimize_for_inference`], which changes the weights accordingly.
        category_ids (`list[int]`, *optional*):
            The data set's own category id of each class index, for results in the data set's terms. `None`: the class
            index is the category id, as in the released COCO checkpoints with their 91 slots.

    Raises:
        `StrictDataclassError` of huggingface_hub, or `ValueError`: a value of the wrong type, or values that do not fit
        together; the message says what to change.

    Example:

    ```python
    >>> from sap_detr_hf import SapDetrConfig
    >>> config = SapDetrConfig(query_grid=[10, 12])
    >>> config.num_queries
    120
    >>> SapDetrConfig.from_variant("r101-dc5").dilation
    True

    ```
    """

    model_type = "sap_detr"
    detector_name = "SAP-DETR"
    variants = {**PUBLISHED_VARIANTS, **FURTHER_VARIANTS}
    way_to_more_queries = "a larger `query_grid`"
    without_training_queries = {"num_groups": 1, "group_content": False, "denoising_pairs": 0}

    dilation: bool = False
    num_queries: int | None = None
    query_grid: list[int] | tuple[int, ...] | None = None
    sample_query_content: bool = True
    share_box_heads: bool = False
    side_directed_gaussian: bool = True
    prediction_grid: list[int] | tuple[int, ...] | None = None
    valid_region: bool = False
    point_start: Literal["corner", "center"] = "corner"
    point_update: Literal["released", "exact"] = "released"
    head_points: Literal["previous", "current"] = "previous"
    inner_loss: Literal["step", "distance"] = "step"
    num_groups: int = 1
    group_content: bool = False

    def __post_init__(self, **kwargs):
        self.backbone_config = resolve_backbone_config(self.backbone_config, R50_BACKBONE)
        self.query_grid = _resolve_query_grid(self.query_grid, self.num_queries)
        if self.num_queries is None:
            self.num_queries = math.prod(self.query_grid)
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """As in [`DetectorConfig`]; a new grid replaces `query_grid`, `num_queries` and `prediction_grid`."""
        if "query_grid" in kwargs or "num_queries" in kwargs:
            grids = ("query_grid", "num_queries", "prediction_grid")
            config_dict = {**config_dict, **{name: kwargs.get(name) for name in grids}}
        return super().from_dict(config_dict, **kwargs)

    def validate_query_grid(self):
        """Check that the grid has exactly `num_queries` cells."""
        rows_columns = list(self.query_grid or [])
        if len(rows_columns) != 2 or min(rows_columns) < 1:
            raise ValueError(f"`query_grid` must be [rows, columns], both at least 1, not {self.query_grid}.")
        rows, columns = rows_columns
        if self.num_queries is not None and rows * columns != self.num_queries:
            raise ValueError(
                f"`query_grid` = {rows} x {columns} has {rows * columns} reference points but `num_queries` = "
                f"{self.num_queries}: leave `num_queries` out, or set a grid with that many cells."
            )

    def validate_points(self):
        """Check that points that start in the center use exact updates."""
        if self.point_start == "center" and self.point_update == "released":
            raise ValueError(
                '`point_start="center"` needs `point_update="exact"`: the released update moves a point from the '
                "center to the corner of its cell. Set both, or neither."
            )

    def validate_groups(self):
        """Check that there is at least one group."""
        if self.num_groups < 1:
            raise ValueError(
                f"`num_groups` = {self.num_groups} must be at least 1: the first group is the model itself."
            )

    def validate_prediction_grid(self):
        """Check that the grid is None or two positive numbers."""
        grid = self.prediction_grid
        if grid is not None and (len(grid) != 2 or min(grid) < 1):
            raise ValueError(f"`prediction_grid` must be [rows, columns], both at least 1, or None, not {grid}.")
        if grid is not None and self.point_update == "exact":
            raise ValueError(
                '`prediction_grid` only works with `point_update="released"`: exact points stay in their own cell.'
            )

    def validate_widths(self):
        """Check that `d_model` is divisible by the sine pairs and GroupNorm groups."""
        if self.d_model % 4:
            raise ValueError(f"`d_model` = {self.d_model} must be a multiple of 4: sine and cosine for both x and y.")
        if self.sample_query_content and self.d_model % 32:
            raise ValueError(
                f"`d_model` = {self.d_model} must be a multiple of 32 for the content convolutions' GroupNorm(32): "
                "change it or set `sample_query_content=False`."
            )

    def validate_dilation(self):
        """Check that the backbone supports dilation."""
        model_type = getattr(self.backbone_config, "model_type", None)
        if self.dilation and model_type != "resnet":
            raise ValueError(
                f"`dilation=True` (DC5) needs a `resnet` backbone, not {model_type!r}: for a timm backbone set "
                "`output_stride=16` in its configuration and leave `dilation=False`."
            )


def _resolve_query_grid(grid: list[int] | tuple[int, ...] | None, num_queries: int | None) -> list[int]:
    if grid is not None:
        return list(grid)
    if num_queries is None or num_queries == 306:
        return [17, 18]
    side = math.isqrt(max(num_queries, 0))
    if side * side != num_queries:
        raise ValueError(
            f"`num_queries` = {num_queries} is neither 306 (17 x 18) nor a square number: "
            "set `query_grid=[rows, columns]` instead."
        )
    return [side, side]


__all__ = ["SapDetrConfig"]
