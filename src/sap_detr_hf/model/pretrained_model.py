# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""The base class of all models: initial weights, loading, optimization for inference."""

from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel

from .backbone import SapDetrFrozenBatchNorm2d, fold_batch_norm, freeze_stages
from .configuration_sap_detr import SapDetrConfig
from .fused_convolution import fuse_convolutions
from .initialization import apply_init_rule
from .salient_points import SapDetrReferencePoints


class SapDetrPreTrainedModel(PreTrainedModel):
    """Weight initialization of the released code and what transformers needs to know of the models."""

    config: SapDetrConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["SapDetrEncoderLayer", "SapDetrDecoderLayer", "SapDetrQueryContent", "SapDetrFusedBlock"]
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss has its own normalizer: Trainer must not rescale it
    _supports_sdpa = True
    _supports_flex_attn = False  # transformers' interface has no place for an additive bias there
    _supports_attention_backend = True
    _supports_flash_attn = False  # no additive bias there
    # Only training uses these weights: a model loaded with other groups or without denoising does not need them.
    _keys_to_ignore_on_load_unexpected = [r"query_groups\.", r"denoising_class_embedding\."]

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        """As in transformers, which loads every tensor as trainable: what the configuration freezes is frozen again.

        Groups of queries that the saved model does not have start close to its own queries.
        """
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, loading = loaded
        if any("query_groups.sides" in str(key) for key in (*loading["missing_keys"], *loading["mismatched_keys"])):
            model.base_model.query_groups.start_near(model.base_model.query_sides)
        if model.config.inference_only:
            model._settle_for_inference()
        for module in model.modules():
            if isinstance(module, SapDetrReferencePoints):
                module.weight.requires_grad_(False)
        if hasattr(model.base_model, "backbone"):
            freeze_stages(model.base_model.backbone, model.config.frozen_backbone_stages)
        return (model, loading) if output_loading_info else model

    def drop_training_queries(self):
        """Remove, in place, what only training uses: further groups of queries and denoising."""
        self.config.update(self.config.without_training_queries)
        for owner, name in ((self.base_model, "query_groups"), (self, "denoising_class_embedding")):
            if hasattr(owner, name):
                setattr(owner, name, None)

    def keep_start_positions(self):
        """Compute once what the decoder takes from parameters alone, for inference: nothing, unless a model has it."""

    @torch.no_grad()
    def optimize_for_inference(self) -> "SapDetrPreTrainedModel":
        """Make the model faster, in place, and unable to train: the same outputs up to rounding (1e-5).

        BatchNorm becomes part of the backbone's convolutions, their weights lie channels last, what only training uses
        is removed, and what the first decoder layer computes from parameters alone is computed once. On a CPU, under
        `torch.no_grad()`, ReLU and the shortcut's sum become part of the convolutions of transformers' ResNet. Can be
        saved and loaded.

        Returns:
            The model itself, in evaluation mode.

        Raises:
            ValueError: BatchNorm of this backbone cannot be folded; the model cannot be used after this error.
        """
        backbone = self.base_model.backbone
        pixels = torch.linspace(-1, 1, 3 * 64 * 64).sin().view(1, 3, 64, 64)  # any values do
        pixels = pixels.to(self.device, self.dtype)[:, :1].expand(-1, self.config.num_channels, -1, -1)
        before = backbone.eval()(pixels).feature_maps[-1].float()
        fold_batch_norm(backbone)
        after = backbone.eval()(pixels).feature_maps[-1].float()
        if (before - after).abs().max() > 0.05 * before.abs().max():  # not rounding, in bfloat16 neither
            raise ValueError(
                f"The BatchNorm of a {type(backbone).__name__} cannot be folded, because it does not follow the "
                "convolution before it: use the model without `optimize_for_inference`."
            )
        fuse_convolutions(backbone)
        self.drop_training_queries()
        self.config.inference_only = True
        self._settle_for_inference()
        return self.eval()

    @torch.no_grad()
    def _settle_for_inference(self):
        self.requires_grad_(False)
        self.base_model.backbone.to(memory_format=torch.channels_last)
        self.base_model.keep_start_positions()

    def train(self, mode: bool = True):
        """As in PyTorch.

        Raises:
            RuntimeError: the model was optimized for inference.
        """
        if mode and self.config.inference_only:
            raise RuntimeError(
                "This model was optimized for inference (`inference_only`) and cannot be trained: load the "
                "original model."
            )
        return super().train(mode)

    def set_attn_implementation(self, attn_implementation: str | dict, allow_all_kernels: bool = False):
        """As in transformers, but "sdpa" leaves submodels without it, such as a ResNet, as they are: no error."""
        submodels = (module for module in self.modules() if isinstance(module, PreTrainedModel))
        if attn_implementation == "sdpa" and not all(submodel._supports_sdpa for submodel in submodels):
            attn_implementation = {"": "sdpa"}
        super().set_attn_implementation(attn_implementation, allow_all_kernels=allow_all_kernels)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        rule = getattr(module, "sap_init", None)
        if isinstance(module, nn.Linear | nn.Conv2d | nn.PReLU | SapDetrReferencePoints):
            module.reset_parameters()
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        elif isinstance(module, SapDetrFrozenBatchNorm2d):
            for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
                init.constant_(getattr(module, name), value)
        else:
            super()._init_weights(module)
        if rule is not None:
            apply_init_rule(module, rule)
