# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Inference of a ResNet on a CPU: each convolution applies ReLU and adds the shortcut while it writes (oneDNN)."""

import torch
from torch import nn
from transformers.models.resnet.modeling_resnet import ResNetBackbone, ResNetBasicLayer, ResNetBottleNeckLayer
from transformers.utils import is_tracing


class SapDetrFusedConvolution(nn.Module):
    """A convolution, the sum with a residual if there is one, and ReLU: takes the place of a `ResNetConvLayer`.

    One operation on a CPU; one by one on other devices, for gradients, and in a traced graph, whose compiler fuses by
    itself.
    """

    def __init__(self, convolution: nn.Conv2d):
        super().__init__()
        self.convolution = convolution

    def forward(self, hidden_states: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """(B, C, h, w) -> (B, C', h', w').

        Args:
            hidden_states: what is convolved.
            residual: (B, C', h', w'), is overwritten by the result where that saves memory.
        """
        convolution, dtype = self.convolution, hidden_states.dtype
        if torch.is_autocast_enabled("cpu"):  # knows convolutions only
            dtype = torch.get_autocast_dtype("cpu")
        if not self._can_fuse(hidden_states, dtype):
            hidden_states = convolution(hidden_states)
            return (hidden_states if residual is None else hidden_states.add_(residual)).relu_()
        hidden_states, weight, bias = (x.to(dtype) for x in (hidden_states, convolution.weight, convolution.bias))
        geometry = (convolution.padding, convolution.stride, convolution.dilation, convolution.groups)
        if residual is None:
            return torch.ops.mkldnn._convolution_pointwise(hidden_states, weight, bias, *geometry, "relu", [], "")
        hidden_states, residual = (x.contiguous(memory_format=torch.channels_last) for x in (hidden_states, residual))
        return torch.ops.mkldnn._convolution_pointwise_.binary(  # in bfloat16 it knows no other layout
            residual, hidden_states, weight, bias, *geometry, "add", 1.0, "relu", [], ""
        )

    def _can_fuse(self, hidden_states: torch.Tensor, dtype: torch.dtype) -> bool:
        weight = self.convolution.weight
        return bool(
            not is_tracing(hidden_states)
            and hidden_states.device.type == weight.device.type == "cpu"  # it is on none while it is offloaded
            and (hidden_states.dtype == weight.dtype or torch.is_autocast_enabled("cpu"))
            and not (torch.is_grad_enabled() and (hidden_states.requires_grad or weight.requires_grad))
            and torch.backends.mkldnn.is_available()
            and torch.backends.mkldnn.enabled
            and (dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()))
        )


class SapDetrFusedBlock(nn.Module):
    """A residual block of transformers' ResNet without BatchNorm, whose sum lies where the shortcut's result lay.

    Args:
        block: its modules are used, by the same names.
        keeps_input: others read the input too, so the sum must lie elsewhere if the shortcut is the input itself.
    """

    def __init__(self, block: ResNetBasicLayer | ResNetBottleNeckLayer, keeps_input: bool):
        super().__init__()
        self.shortcut = block.shortcut
        self.layer = nn.ModuleList(SapDetrFusedConvolution(layer.convolution) for layer in block.layer)
        self.keeps_input = keeps_input

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> (B, C', h', w')."""
        residual = self.shortcut(hidden_states)  # (B, C', h', w')
        if self.keeps_input and residual is hidden_states:
            residual = residual.clone()
        *layers, last = self.layer
        for layer in layers:
            hidden_states = layer(hidden_states)
        return last(hidden_states, residual)


def fuse_convolutions(backbone: nn.Module) -> None:
    """Fuse the blocks of transformers' ResNet, BatchNorm folded, channels last; other backbones stay as they are."""
    if not isinstance(backbone, ResNetBackbone) or backbone.config.hidden_act != "relu":
        return
    backbone.embedder.embedder = SapDetrFusedConvolution(backbone.embedder.embedder.convolution)
    for stage in backbone.encoder.stages:
        for index, block in enumerate(stage.layers):
            stage.layers[index] = SapDetrFusedBlock(block, keeps_input=index == 0)
