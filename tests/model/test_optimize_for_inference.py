import copy

import pytest
import torch
from tiny_model import tiny_inputs, tiny_model
from torch import nn
from transformers import AutoModelForObjectDetection, TimmBackboneConfig

from sap_detr_hf import SapDetrConfig, SapDetrForObjectDetection, SapDetrModel
from sap_detr_hf.model.backbone import SapDetrFrozenBatchNorm2d
from sap_detr_hf.model.fused_convolution import SapDetrFusedBlock

OUTPUTS = ("logits", "pred_boxes", "pred_points", "pred_objectness")


def with_statistics(model: nn.Module) -> nn.Module:
    """Norms with the values of a trained backbone, where folding changes every weight."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, SapDetrFrozenBatchNorm2d | nn.BatchNorm2d):
            for name, low, high in (("weight", 0.5, 1.5), ("bias", -1, 1), ("running_mean", -1, 1)):
                tensor = getattr(module, name)
                tensor.data = torch.empty_like(tensor).uniform_(low, high, generator=generator)
            module.running_var.data.uniform_(0.5, 2, generator=generator)
    return model.eval()


def assert_same_outputs(model, other):
    inputs = tiny_inputs()
    with torch.no_grad():
        expected, found = model(*inputs), other(*inputs)
    for name in OUTPUTS:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("fields", [{}, {"dilation": True}, {"freeze_backbone_batch_norm": False}])
def test_same_outputs_also_saved_and_loaded(tmp_path, fields):
    model = with_statistics(tiny_model(**fields))
    fast = copy.deepcopy(model).optimize_for_inference()
    assert not any(isinstance(module, SapDetrFrozenBatchNorm2d | nn.BatchNorm2d) for module in fast.modules())
    assert_same_outputs(model, fast)
    fast.save_pretrained(tmp_path)
    loaded, info = AutoModelForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert loaded.config.inference_only
    for each in (fast, loaded):
        assert all(isinstance(b, SapDetrFusedBlock) for s in each.model.backbone.encoder.stages for b in s.layers)
    assert loaded.model.decoder.start_positions is not None
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert_same_outputs(model, loaded)


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "mobilenetv3_small_050"])
def test_timm_backbones_fold(name):
    backbone = TimmBackboneConfig(backbone=name, out_indices=[-1], freeze_batch_norm_2d=True)
    model = with_statistics(tiny_model(backbone_config=backbone, frozen_backbone_stages=0))
    assert_same_outputs(model, copy.deepcopy(model).optimize_for_inference())


def test_half_precision_and_base_model():
    model = with_statistics(tiny_model())
    pixels, mask = tiny_inputs()
    fast = copy.deepcopy(model).bfloat16().optimize_for_inference()
    assert fast(pixels.bfloat16(), mask).pred_boxes.isfinite().all()
    base = SapDetrModel(model.config).eval()
    expected = base(pixels, mask).last_hidden_state
    torch.testing.assert_close(
        base.optimize_for_inference()(pixels, mask).last_hidden_state, expected, rtol=0, atol=1e-5
    )


def test_training_is_refused(tmp_path):
    fast = tiny_model().optimize_for_inference()
    with pytest.raises(RuntimeError, match="cannot be trained"):
        fast.train()
    fast.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="cannot be trained"):
        SapDetrForObjectDetection.from_pretrained(tmp_path).train()
    assert not fast.train(False).training


def test_a_backbone_in_another_order_is_refused():
    model = with_statistics(tiny_model())
    layer = model.model.backbone.embedder.embedder
    layer.forward = lambda pixels: layer.normalization(layer.activation(layer.convolution(pixels)))
    with pytest.raises(ValueError, match="cannot be folded"):
        model.optimize_for_inference()


def test_configuration_keeps_the_mark():
    assert SapDetrConfig.from_dict(SapDetrConfig(inference_only=True).to_dict()).inference_only
