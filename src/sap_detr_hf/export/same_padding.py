"""Convolutions with TensorFlow's "SAME" padding (timm's `tf_` backbones), as one operation that ONNX has.

timm computes the padding from the input's size. With a dynamic height and width every further layer then carries a
longer symbolic formula, and exporting a backbone takes many minutes; as one operation it takes seconds.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn


@torch.library.custom_op("sap_detr::same_convolution", mutates_args=())
def same_convolution(
    images: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> torch.Tensor:
    """(B, C, h, w) -> (B, C', ceil(h / stride), ceil(w / stride)); an odd pixel of padding goes to bottom and right."""
    totals = [
        max((-(-size // step) - 1) * step + (kernel - 1) * spread + 1 - size, 0)
        for size, kernel, step, spread in zip(images.shape[-2:], weight.shape[-2:], stride, dilation, strict=True)
    ]
    top, left = (total // 2 for total in totals)
    padded = nn.functional.pad(images, (left, totals[1] - left, top, totals[0] - top))
    return nn.functional.conv2d(padded, weight, bias, tuple(stride), 0, tuple(dilation), groups)


@same_convolution.register_fake
def _(images, weight, bias, stride, dilation, groups):
    height, width = ((size - 1) // step + 1 for size, step in zip(images.shape[-2:], stride, strict=True))
    return images.new_empty(images.shape[0], weight.shape[0], height, width)


class SameConvolution(nn.Module):
    """Takes the place of a timm `Conv2dSame`, with its parameters."""

    def __init__(self, replaced: nn.Conv2d):
        super().__init__()
        self.weight, self.bias = replaced.weight, replaced.bias
        self.stride, self.dilation, self.groups = list(replaced.stride), list(replaced.dilation), replaced.groups

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> (B, C', ceil(h / stride), ceil(w / stride))."""
        return same_convolution(images, self.weight, self.bias, self.stride, self.dilation, self.groups)


def replace_same_convolutions(module: nn.Module) -> None:
    """Replace every timm `Conv2dSame` inside `module`."""
    for name, child in module.named_children():
        if type(child).__name__ == "Conv2dSame":  # by name: timm need not be installed
            setattr(module, name, SameConvolution(child))  # type: ignore[arg-type]
        else:
            replace_same_convolutions(child)


def onnx_translations() -> dict[Callable, Callable]:
    """How `torch.onnx.export` writes these operations: its `custom_translation_table`."""
    from onnxscript import opset18 as onnx

    def translate(images, weight, bias, stride, dilation, groups):
        inputs = [images, weight] if bias is None else [images, weight, bias]
        return onnx.Conv(*inputs, auto_pad="SAME_UPPER", strides=stride, dilations=dilation, group=groups)

    return {torch.ops.sap_detr.same_convolution.default: translate}
