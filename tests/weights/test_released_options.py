"""Checkpoints of the released code with each of its options: converted, saved and loaded, they compute the same."""

import re

import numpy as np
import pytest
import torch
from released_arithmetic import SMALL_ARGS, released_outputs, synthetic_checkpoint
from released_reference import outputs, reference_inputs, released_state_dict
from tiny_model import tiny_inputs

from sap_detr_hf import SapDetrConfig, SapDetrForObjectDetection
from sap_detr_hf.weights.convert import (
    _REQUIRED_ARGS,
    ConversionError,
    config_of_checkpoint,
    convert_checkpoint,
    convert_state_dict,
)
from sap_detr_hf.weights.resnets import RESNETS, resnet_config

pytest.importorskip("torchvision")

OPTIONS = {
    "plain": {},
    "without Gaussian": {"sdg": False},
    "without content convolutions": {"newconvinit": False},
    "bare": {"sdg": False, "newconvinit": False, "bbox_embed_diff_each_layer": False},
    "shared box heads": {"bbox_embed_diff_each_layer": False},
    "306 queries": {"num_queries": 306},
    "heads that divide by 20": {"num_queries": 100},
    "PReLU": {"transformer_activation": "prelu"},
    "GELU": {"transformer_activation": "gelu"},
    "heads": {"nheads": 8, "d_model": 96},
    "layers": {"enc_layers": 1, "dec_layers": 1},
    "more layers": {"enc_layers": 3, "dec_layers": 4, "dim_feedforward": 40},
    "classes": {"classes": 91},
    "resnet34": {"backbone": "resnet34"},
    "resnet152": {"backbone": "resnet152", "sdg": False},
    "resnet50 DC5": {"backbone": "resnet50", "dilation": True, "sdg": False},
}


@torch.no_grad()
def _same_outputs(model, tensors, args, inputs, tolerance=2e-5):
    expected = released_outputs(tensors, args, *inputs)
    got = model.model(*inputs)
    predictions = model.predict(got, 0)
    for ours, theirs in (
        ("logits", "logits"),
        ("pred_boxes", "boxes"),
        ("pred_objectness", "objectness"),
        ("pred_points", "points"),
    ):
        assert predictions[ours].shape == expected[theirs].shape
        assert (predictions[ours] - expected[theirs]).abs().max() < tolerance, ours


@torch.no_grad()
def test_the_arithmetic_is_the_released_codes():
    inputs, stored = reference_inputs("resnet50"), outputs("resnet50")
    args = {**SMALL_ARGS, "backbone": "resnet50", "nheads": 8, "enc_layers": 6, "dec_layers": 6}
    computed = released_outputs(released_state_dict("resnet50"), args, *inputs)
    for name in ("logits", "boxes", "objectness", "points"):
        assert np.abs(computed[name][-1].numpy() - stored[name]).max() < 2e-5, name


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_computed_the_same(name):
    tensors, args = synthetic_checkpoint(**OPTIONS[name])
    config = config_of_checkpoint(tensors, args)
    model = SapDetrForObjectDetection(config).eval()
    model.load_state_dict(convert_state_dict(tensors, config))
    _same_outputs(model, tensors, args, tiny_inputs())


@pytest.mark.parametrize("name", ["plain", "bare", "PReLU", "heads", "306 queries"])
def test_tensors_tell_the_options(name):
    tensors, args = synthetic_checkpoint(**OPTIONS[name])
    if name == "bare":
        args = {**args, "nheads": 8}  # which no tensor shows
    told = config_of_checkpoint(tensors, None)
    said = config_of_checkpoint(tensors, args)
    assert told.to_dict() == said.to_dict()


@pytest.mark.parametrize(("name", "with_args"), [("bare", True), ("PReLU", False)])
def test_file_to_directory(tmp_path, name, with_args):
    tensors, args = synthetic_checkpoint(**OPTIONS[name])
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": tensors, "args": args} if with_args else tensors, path)
    convert_checkpoint(path, tmp_path / "model", verify=True)
    model = SapDetrForObjectDetection.from_pretrained(tmp_path / "model").eval()
    _same_outputs(model, tensors, args, tiny_inputs())


def test_no_gaussian_no_parameters():
    tensors, args = synthetic_checkpoint(sdg=False)
    config = config_of_checkpoint(tensors, args)
    model = SapDetrForObjectDetection(config)
    assert not any("gaussian" in name for name in model.state_dict())


def test_dilation_is_asked_for_where_nothing_tells_it(tmp_path):
    tensors, args = synthetic_checkpoint(backbone="resnet50", dilation=True)
    with pytest.raises(ConversionError, match=r"resnet50 is dilated .* `--dilation yes`"):
        config_of_checkpoint(tensors, None)
    torch.save(tensors, tmp_path / "bare.pth")
    model = convert_checkpoint(tmp_path / "bare.pth", tmp_path / "model", dilation=True)
    _same_outputs(model, tensors, args, tiny_inputs())
    with pytest.raises(ConversionError, match="`dilation` = True, not False"):
        config_of_checkpoint(tensors, args, dilation=False)
    with pytest.raises(ConversionError, match="'r101' has `dilation` = False, not True"):
        config_of_checkpoint(tensors, None, "r101", dilation=True)


def test_unknown_heads_are_said(caplog):
    caplog.set_level("WARNING", logger="sap_detr_hf")  # some libraries raise the root logger's level
    tensors, _ = synthetic_checkpoint(sdg=False, nheads=8)
    assert config_of_checkpoint(tensors, None).decoder_attention_heads == 8
    assert "using the default 8" in caplog.text


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"backbone": "swin_B_224_22k"}, "backbone is 'swin_B_224_22k'; only resnet18"),
        ({"dilation": True}, "torchvision cannot dilate its blocks"),
        ({"transformer_activation": "selu"}, "`transformer_activation` = 'selu'; only relu"),
        ({"pe_temperatureH": 10000}, "`pe_temperatureH` = 10000"),
        ({"nheads": 2}, "`nheads` = 2, but its tensors show 4 heads"),
        ({"sdg": False}, "`sdg` = False, but its tensors hold"),
        ({"class_embed_diff_each_layer": True}, "`class_embed_diff_each_layer` = True"),
    ],
)
def test_unsupported_options_are_named(changed, message):
    tensors, args = synthetic_checkpoint()
    with pytest.raises(ConversionError, match=re.escape(message)):
        config_of_checkpoint(tensors, {**args, **changed})


@pytest.mark.parametrize("name", _REQUIRED_ARGS)
def test_options_with_another_computation_are_named(name):
    tensors, args = synthetic_checkpoint()
    other = not args[name] if isinstance(args[name], bool) else "other"
    with pytest.raises(ConversionError, match=re.escape(f"`{name}` = {other!r}; only {args[name]!r} is supported")):
        config_of_checkpoint(tensors, {**args, name: other})


def test_an_unknown_activation_is_said(caplog):
    caplog.set_level("WARNING", logger="sap_detr_hf")
    tensors, _ = synthetic_checkpoint()
    assert config_of_checkpoint(tensors, None).activation_function in ("relu", "prelu")
    said = "does not say its activation" in caplog.text
    assert said == (config_of_checkpoint(tensors, None).activation_function == "relu")


def test_other_backbones_and_query_numbers_are_named():
    tensors, _ = synthetic_checkpoint()
    odd = {**tensors, "refbbox_embed.weight": torch.zeros(300, 4)}
    with pytest.raises(ConversionError, match="300 queries; only 306"):
        config_of_checkpoint(odd, None)
    other = {name: value for name, value in tensors.items() if ".layer1.0." not in name}
    with pytest.raises(ConversionError, match="backbone is unknown"):
        config_of_checkpoint(other, None)


@pytest.mark.parametrize("name", RESNETS)
def test_resnets_are_torchvisions(name):
    import torchvision

    network = getattr(torchvision.models, name)(weights=None)
    config = SapDetrConfig(backbone_config=resnet_config(name))
    with torch.device("meta"):
        backbone = SapDetrForObjectDetection(config).model.backbone
    theirs = sum(p.numel() for child in list(network.children())[:-1] for p in child.parameters())
    ours = sum(v.numel() for k, v in backbone.state_dict().items() if "running" not in k)
    assert ours == theirs
