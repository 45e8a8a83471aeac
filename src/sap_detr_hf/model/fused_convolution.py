# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Faster inference of a ResNet on a CPU: oneDNN fuses each convolution with ReLU and the shortcut addition."""

import torch
from torch import nn
from transformers.models.resnet.modeling_resnet import ResNetBackbone, ResNetBasicLayer, ResNetBottleNeckLayer
from transformers.utils import is_tracing


class SapDetrFusedConvolution(nn.Module):
    """A convolution, the sum with a residual if there is one, and ReLU: takes the place of a `ResNetConvLayer`.

    One operation on a CPU under `torch.no_grad()`, which calls no hooks of the convolution; one by one otherwise, and
    in a traced graph, whose compiler fuses by itself.
    """

    def __init__(self, convolution: nn.Conv2d):
        super().__init__()
        self.convolution = convolution.to(memory_format=torch.channels_last)

    def forward(self, hidden_states: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """(B, C, h, w) -> (B, C', h', w').

        Args:
            hidden_states: what is convolved.
            residual: (B, C', h', w'), is overwritten by the result if all is one operation.
        """
        convolution, dtype = self.convolution, self._fused_dtype(hidden_states)
        if dtype is None:
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

    def _fused_dtype(self, hidden_states: torch.Tensor) -> torch.dtype | None:
        """What the fused operation would compute in; `None` where it cannot be used."""
        weight = self.convolution.weight
        on_cpu = hidden_states.device.type == weight.device.type == "cpu"  # offloaded weights are on "meta"
        if torch.is_grad_enabled() or is_tracing(hidden_states) or not on_cpu:
            return None
        if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
            return None
        dtypes = {hidden_states.dtype, weight.dtype}
        if torch.is_autocast_enabled("cpu"):  # casts for convolutions, not for these operations
            dtypes = {torch.get_autocast_dtype("cpu")}
        known = {torch.float32}
        if torch.ops.mkldnn._is_mkldnn_bf16_supported():
            known.add(torch.bfloat16)
        return dtypes.pop() if len(dtypes) == 1 and dtypes <= known else None


class SapDetrFusedBlock(nn.Module):
    """A residual block of transformers' ResNet without BatchNorm; where it is fused, its sum overwrites the shortcut.

    Hooks that keep the output of a block within a stage see the next block's; the stages' outputs stay.

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
    """Fuse the blocks of transformers' ResNet, whose BatchNorm was folded; other backbones stay as they are."""
    if not isinstance(backbone, ResNetBackbone) or backbone.config.hidden_act != "relu":
        return
    backbone.embedder.embedder = SapDetrFusedConvolution(backbone.embedder.embedder.convolution)
    for stage in backbone.encoder.stages:
        for index, block in enumerate(stage.layers):
            stage.layers[index] = SapDetrFusedBlock(block, keeps_input=index == 0)
