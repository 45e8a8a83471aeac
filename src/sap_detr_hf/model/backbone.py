# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""The backbone of SAP-DETR: any `AutoBackbone`, with frozen BatchNorm, frozen stages and a dilated last stage (DC5)."""

import re
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from transformers import AutoBackbone
from transformers.utils import is_tracing

from .configuration_sap_detr import SapDetrConfig
from .fused_convolution import fuse_convolutions


class SapDetrFrozenBatchNorm2d(nn.Module):
    """BatchNorm2d whose statistics and affine parameters are constants (buffers).

    A constant factor and shift per channel: nothing is kept for the backward pass, where PyTorch's own fused operation
    would keep its whole input. With `inplace`, the output takes the input's memory under `torch.no_grad()`.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, inplace: bool = False):
        super().__init__()
        self.eps = eps
        self.inplace = inplace
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> the same shape."""
        scale = self.weight.float() * (self.running_var.float() + self.eps).rsqrt()  # (C,)
        shift = self.bias.float() - self.running_mean.float() * scale  # (C,)
        scale, shift = (values.to(hidden_states.dtype)[:, None, None] for values in (scale, shift))
        if self.inplace and not torch.is_grad_enabled() and not is_tracing(hidden_states):
            return torch.addcmul(shift, hidden_states, scale, out=hidden_states)
        return torch.addcmul(shift, hidden_states, scale)


class SapDetrFrozenBatchNormAct2d(SapDetrFrozenBatchNorm2d):
    """The same for timm's BatchNorm with a built-in activation."""

    def __init__(self, num_features: int, eps: float, activation: nn.Module):
        super().__init__(num_features, eps)
        self.activation = activation

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> the same shape."""
        return self.activation(super().forward(hidden_states))


def freeze_batch_norm(module: nn.Module) -> None:
    """Replace every BatchNorm2d inside `module` by its frozen form, keeping its values."""
    for name, child in module.named_children():
        if not isinstance(child, nn.BatchNorm2d):
            freeze_batch_norm(child)
            continue
        if hasattr(child, "act"):  # timm's BatchNormAct2d: norm, dropout (identity in detectors), activation
            frozen: SapDetrFrozenBatchNorm2d = SapDetrFrozenBatchNormAct2d(child.num_features, child.eps, child.act)
        else:
            frozen = SapDetrFrozenBatchNorm2d(child.num_features, child.eps)
        for key in ("weight", "bias", "running_mean", "running_var"):
            value = getattr(child, key)
            if value is not None:
                setattr(frozen, key, value.detach().clone())
        setattr(module, name, frozen)


@torch.no_grad()
def fold_batch_norm(backbone: nn.Module) -> None:
    """Make each BatchNorm part of the convolution before it among its parent's children, for inference only.

    The convolution gets a bias and keeps its name, the norm leaves; a norm without such a convolution stays.
    """
    freeze_batch_norm(backbone)
    for parent in list(backbone.modules()):
        for (_, convolution), (name, norm) in pairwise(list(parent.named_children())):
            if not isinstance(convolution, nn.Conv2d) or not isinstance(norm, SapDetrFrozenBatchNorm2d):
                continue
            # In float32, also for a model in half precision
            mean, variance, scale, shift = (
                getattr(norm, key).float() for key in ("running_mean", "running_var", "weight", "bias")
            )
            bias = None if convolution.bias is None else convolution.bias.float()
            fused = fuse_conv_bn_weights(convolution.weight.float(), bias, mean, variance, norm.eps, scale, shift)
            dtype = convolution.weight.dtype
            convolution.weight, convolution.bias = (nn.Parameter(values.to(dtype)) for values in fused)
            setattr(parent, name, getattr(norm, "activation", nn.Identity()))


def dilate_last_stage(backbone: nn.Module) -> None:
    """DC5: the last ResNet stage keeps its input's resolution; its later blocks dilate their 3x3 convolution by 2."""
    for index, block in enumerate(backbone.encoder.stages[-1].layers):
        for convolution in block.modules():
            if not isinstance(convolution, nn.Conv2d):
                continue
            convolution.stride = (1, 1)
            if convolution.kernel_size == (3, 3) and index > 0:
                convolution.dilation = convolution.padding = (2, 2)


def freeze_stages(backbone: nn.Module, stages: int) -> None:
    """Freeze the stem and the first `stages` stages of a transformers or timm backbone; 0 freezes nothing.

    Raises:
        ValueError: the backbone's parameter names show no such stages.
    """
    if stages == 0:
        return
    stem = re.compile(r"(.*\.)?(embedder|conv1|bn1|conv_stem|stem|patch_embed|embeddings)\.")
    stage = re.compile(r"(?:.*?\.)?(?:stages|blocks|layer|stages_|layer_)(?:\.|_)?(\d+)\.")
    found = set()
    for name, parameter in backbone.named_parameters():
        stage_match = stage.match(name)
        first = 1 if re.search(r"layer\d", name) else 0  # torchvision's and timm's `layer1` is the first stage
        number = int(stage_match[1]) - first if stage_match else None
        if (number is None and stem.match(name)) or (number is not None and number < stages):
            parameter.requires_grad_(False)
            found.add(number)
    if not set(range(stages)) <= found:
        raise ValueError(
            f"Cannot freeze the first {stages} stages of a {type(backbone).__name__}: its parameters name no stages. "
            "Set `frozen_backbone_stages=0`."
        )


def build_backbone(config: SapDetrConfig) -> nn.Module:
    """The backbone of a configuration, with random weights (see `load_backbone_weights` for ImageNet's)."""
    # "sdpa" for the whole model reaches the backbone's configuration too, and a backbone without it, such as a ResNet,
    # would refuse; None means SDPA where it is supported.
    attention = config.backbone_config._attn_implementation
    attention = None if attention == "sdpa" else attention
    backbone = AutoBackbone.from_config(config.backbone_config, attn_implementation=attention)
    if config.dilation:
        dilate_last_stage(backbone)
    if config.freeze_backbone_batch_norm:
        freeze_batch_norm(backbone)
    if config.backbone_config.model_type == "resnet":
        for module in backbone.modules():
            if isinstance(module, nn.ReLU | SapDetrFrozenBatchNorm2d):
                module.inplace = True  # each on a fresh output of a convolution, a norm or a sum
    if config.inference_only:
        fold_batch_norm(backbone)
        fuse_convolutions(backbone)
    freeze_stages(backbone, config.frozen_backbone_stages)
    return backbone
