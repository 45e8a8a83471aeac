import copy

import pytest
import torch
from accelerate import cpu_offload
from tiny_model import TINY_BACKBONE, tiny_inputs, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoBackbone, ResNetConfig

from sap_detr_hf.model.backbone import fold_batch_norm
from sap_detr_hf.model.fused_convolution import fuse_convolutions

ALL_MAPS = ["stem", "stage1", "stage2", "stage3", "stage4"]


def folded_backbone(layer_type: str) -> torch.nn.Module:
    torch.manual_seed(0)
    fields = {**TINY_BACKBONE, "depths": [2, 1, 1, 2], "layer_type": layer_type, "out_features": ALL_MAPS}
    backbone = AutoBackbone.from_config(ResNetConfig(**fields)).eval()
    for norm in (module for module in backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.bias.data.uniform_(-1, 1)
    fold_batch_norm(backbone)
    return backbone.requires_grad_(False).to(memory_format=torch.channels_last)


def fused(backbone: torch.nn.Module) -> torch.nn.Module:
    backbone = copy.deepcopy(backbone)
    fuse_convolutions(backbone)
    return backbone


class Operations(TorchDispatchMode):
    """Names of the operations that ran."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layer_type", ["basic", "bottleneck"])
def test_every_map_is_the_same_by_fewer_operations(layer_type):
    plain = folded_backbone(layer_type)
    pixels, _ = tiny_inputs()
    other = fused(plain)
    with torch.no_grad(), Operations() as run:
        found = other(pixels)
    for name, wanted, values in zip(ALL_MAPS, plain(pixels).feature_maps, found.feature_maps, strict=True):
        assert wanted.std() > 0.05, name
        torch.testing.assert_close(values, wanted, rtol=1e-4, atol=1e-4)
    assert run.names.count("mkldnn._convolution_pointwise_.binary") == 6  # blocks
    assert run.names.count("aten.convolution.default") == 3  # shortcuts
    assert not any("relu" in name or "add" in name or "clamp" in name for name in run.names)
    with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False):
        torch.testing.assert_close(other(pixels).feature_maps, found.feature_maps, rtol=1e-4, atol=1e-4)


def test_weights_lie_channels_last():
    """The sum in place knows no other layout in bfloat16."""
    backbone = fused(folded_backbone("bottleneck").to(memory_format=torch.contiguous_format))
    weights = [module.weight for module in backbone.modules() if isinstance(module, torch.nn.Conv2d)]
    inner = [weight for weight in weights if weight.shape[-1] > 1]
    assert len(inner) == 7  # the stem's, and one of each block
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in inner)


def test_names_of_the_weights_stay():
    backbone = folded_backbone("bottleneck")
    assert fused(backbone).state_dict().keys() == backbone.state_dict().keys()
    assert fused(fused(backbone)).state_dict().keys() == backbone.state_dict().keys()


@pytest.mark.parametrize("sizes", [((96, 128), (64, 96)), ((32, 32),)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision(dtype, sizes):
    """By autocast of float32 weights and by weights of that type; also where the last map is of one cell."""
    plain = folded_backbone("bottleneck")
    pixels = tiny_inputs(sizes)[0]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        found = fused(plain.to(dtype))(pixels.to(dtype)).feature_maps[-1]
    assert found.dtype == torch.bfloat16
    wanted = plain.float()(pixels).feature_maps[-1]
    assert (found.float() - wanted).abs().max() < 0.02 * wanted.abs().max()


@torch.no_grad()
def test_images_of_another_type_are_refused():
    backbone = fused(folded_backbone("basic")).bfloat16()
    with pytest.raises(RuntimeError, match="should be the same"):
        backbone(tiny_inputs()[0])


@pytest.mark.parametrize(
    "name",
    [
        "pixels",
        "embedder.embedder.convolution.weight",
        "encoder.stages.3.layers.0.shortcut.convolution.weight",
        "encoder.stages.3.layers.1.layer.1.convolution.bias",
    ],
)
def test_gradients(name):
    plain = folded_backbone("basic")
    gradients = []
    for backbone in (plain, fused(plain)):
        pixels = tiny_inputs()[0]
        asked = pixels if name == "pixels" else backbone.get_parameter(name)
        asked.requires_grad_()
        backbone(pixels).feature_maps[-1].square().sum().backward()
        gradients.append(asked.grad)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], gradients[0])


@torch.no_grad()
def test_offloaded_weights():
    inputs = tiny_inputs()
    model = tiny_model().optimize_for_inference()
    wanted = model(*inputs).pred_boxes
    cpu_offload(model)
    assert all(parameter.is_meta for parameter in model.model.backbone.parameters())
    torch.testing.assert_close(model(*inputs).pred_boxes, wanted, rtol=0, atol=1e-5)


def test_other_activations_stay_separate():
    config = ResNetConfig(**{**TINY_BACKBONE, "hidden_act": "gelu"})
    backbone = AutoBackbone.from_config(config).eval()
    fold_batch_norm(backbone)
    before = type(backbone.encoder.stages[0].layers[0])
    fuse_convolutions(backbone)
    assert type(backbone.encoder.stages[0].layers[0]) is before
