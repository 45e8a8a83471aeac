"""Warm starts from DAB-DETR, DETR and Conditional DETR: what is taken computes the same as in transformers."""

import copy
import re

import pytest
import torch
from source_detectors import DETR_KINDS, SMALL, TINY, WIDTH, save_source
from tiny_model import tiny_inputs
from transformers import AutoImageProcessor, DetrImageProcessorPil, ResNetConfig, TimmBackboneConfig

from sap_detr_cli.main import main
from sap_detr_hf import SapDetrForObjectDetection
from sap_detr_hf.weights.warm_start import base_model_of, warm_start, warm_start_model


@pytest.fixture(scope="module", params=DETR_KINDS)
def started(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    return request.param, save_source(directory, request.param), warm_start(str(directory))


@torch.no_grad()
def assert_same_encoder(theirs, ours, inputs):
    outputs = []
    hook = theirs.model.encoder.register_forward_hook(lambda module, arguments, output: outputs.append(output[0]))
    theirs(*inputs)
    hook.remove()
    (expected,) = outputs
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(ours(*inputs).encoder_last_hidden_state, expected, rtol=0, atol=1e-5)


def test_encoder_computes_the_same_on_padded_images(started):
    _, theirs, start = started
    inputs = tiny_inputs(((128, 160), (96, 100)))
    assert (inputs[1] == 0).any()
    assert_same_encoder(theirs, start.model, inputs)


def test_every_tensor_taken_is_the_sources(started):
    kind, theirs, start = started
    source, ours = theirs.model.state_dict(), start.model.model.state_dict()
    assert len(start.taken) > 100
    for name, (their_name, factor) in start.taken.items():
        if their_name.startswith("backbone."):
            prefix = "backbone.conv_encoder.model." if kind == "dab-detr" else "backbone.model."
            their_name = prefix + their_name.removeprefix("backbone.")
        assert torch.equal(ours[name], source[their_name] * factor), name
    factors = {name: factor for name, (_, factor) in start.taken.items() if factor != 1}
    assert len(factors) == 2 * SMALL["decoder_layers"]
    assert {name.split(".", 3)[3] for name in factors} == {f"cross_attn.q_content_proj.{x}" for x in ("weight", "bias")}
    expected = 3**0.5 if kind == "detr" else 1.5**0.5
    assert set(factors.values()) == {expected}


def test_what_starts_anew(started):
    kind, _, start = started
    parts = {re.sub(r"\d+", "*", name) for name in start.model.model.state_dict() if name not in start.taken}
    parts = {name.rsplit(".layers.*." if name.count("layers") > 1 else ".", 1)[0] for name in parts}
    wanted = {"query_content.convolutions.*", "query_content.norms.*", "query_points", "query_sides"}
    wanted |= {f"decoder.{head}.layers.*" for head in ("query_scale", "point_position_head", "box_position_head")}
    wanted |= {"decoder.side_heads.*", "decoder.point_heads.*", "decoder.layers.*.gaussian.proj"}
    wanted |= {f"decoder.layers.*.self_attn.{side}_{part}_proj" for side in "qk" for part in ("point", "box")}
    wanted |= {
        f"decoder.layers.*.cross_attn.q_{part}{sine}_proj" for part in ("point", "box") for sine in ("", "_sine")
    }
    if kind == "detr":
        wanted |= {"decoder.layers.*.cross_attn.k_position_proj"}
    if kind != "dab-detr":
        wanted |= {"encoder.layers.*.position_scale"}
    assert {name.removesuffix(".layers.*") for name in parts} == {name.removesuffix(".layers.*") for name in wanted}


def test_prelu_and_temperature_come_along(started):
    kind, theirs, start = started
    config = start.model.config
    assert config.position_temperature == (20 if kind == "dab-detr" else 10000)
    assert config.activation_function == ("prelu" if kind == "dab-detr" else "relu")
    assert config.id2label == SMALL["id2label"]
    if kind == "dab-detr":
        slope = theirs.model.encoder.layers[1].activation_fn.weight
        assert slope != 0.25
        assert torch.equal(start.model.model.encoder.layers[1].ffn.activation.weight, slope)


@torch.no_grad()
def _zero(*layers):
    for layer in layers:
        if layer is not None:
            layer.weight.zero_()
            layer.bias.zero_()


@torch.no_grad()
@pytest.mark.parametrize("index", [0, 2])
def test_content_path_of_the_decoder_computes_the_same(started, index):
    """With the positions that were not taken switched off on both sides."""
    kind, theirs, start = started
    generator = torch.Generator().manual_seed(1)
    states, memory, positions = (torch.randn(2, n, WIDTH, generator=generator) for n in (12, 20, 20))
    layer = copy.deepcopy(start.model.model.decoder.layers[index])
    their_layer = copy.deepcopy(theirs.model.decoder.layers[index])
    own, cross = layer.self_attn, layer.cross_attn
    _zero(own.q_point_proj, own.q_box_proj, own.k_point_proj, own.k_box_proj)
    _zero(cross.q_point_proj, cross.q_box_proj, cross.q_point_sine_proj, cross.q_box_sine_proj)
    _zero(layer.gaussian.proj.layers[-1])
    nothing = torch.zeros_like(states)
    if kind == "dab-detr":
        _zero(their_layer.self_attn.self_attn_query_pos_proj, their_layer.self_attn.self_attn_key_pos_proj)
        _zero(their_layer.cross_attn.cross_attn_query_pos_proj, their_layer.cross_attn.cross_attn_query_pos_sine_proj)
        expected = their_layer(states, None, positions, nothing, nothing, memory)[0]
    elif kind == "conditional_detr":
        _zero(their_layer.self_attn.q_pos_proj, their_layer.self_attn.k_pos_proj)
        _zero(their_layer.encoder_attn.q_pos_proj, their_layer.encoder_attn.q_pos_sine_proj)
        expected = their_layer(states, None, positions, nothing, nothing, memory, is_first=index == 0)
    else:
        _zero(cross.k_position_proj)
        expected = their_layer(states, None, None, None, memory)
    points, sides = torch.full((2, 12, 2), 0.5), torch.full((2, 12, 4), 0.1)
    twice = torch.cat([nothing, nothing], dim=-1)
    place = (torch.tensor([5.0, 4.0]).view(1, 1, 1, 2), None, (4, 5))
    ours = layer(states, points, sides, nothing, nothing, nothing, twice, memory, positions, *place)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "name", "dilation", "fields"),
    [
        ("dab-detr", "resnet18", False, {}),
        ("dab-detr", "resnet50", True, {"num_patterns": 3}),  # -dc5-pat3
        ("dab-detr", "resnet18", False, {"random_refpoints_xy": True}),  # -fixxy
        ("detr", "resnet50", True, {}),
        ("detr", "resnet50", False, {}),
    ],
)
def test_timm_backbones_of_the_hub_models(tmp_path, kind, name, dilation, fields):
    pytest.importorskip("timm")
    theirs = save_source(tmp_path, kind, backbone=name, dilation=dilation, **fields)
    ours = warm_start(str(tmp_path)).model
    assert ours.config.backbone_config.model_type == "resnet"
    assert ours.config.dilation is dilation
    features = tiny_inputs(((96, 128), (64, 96)))
    assert_same_encoder(theirs, ours, features)


@torch.no_grad()
def test_another_backbone_of_timm_comes_along_where_timm_froze_it(tmp_path):
    pytest.importorskip("timm")
    network = {"backbone": "tf_efficientnet_lite0", "out_indices": [3], "use_pretrained_backbone": False}
    theirs = save_source(tmp_path, "dab-detr", backbone_config=TimmBackboneConfig(**network, freeze_batch_norm_2d=True))
    start = warm_start(str(tmp_path))
    assert {name for name in start.model.model.state_dict() if name.startswith("backbone.")} <= start.taken.keys()
    assert_same_encoder(theirs, start.model, tiny_inputs(((96, 128), (64, 96))))
    save_source(tmp_path / "thawed", "dab-detr", backbone_config=TimmBackboneConfig(**network))
    with pytest.raises(ValueError, match="its backbone is 'tf_efficientnet_lite0'"):
        warm_start(str(tmp_path / "thawed"))


def test_directory_is_a_model_with_a_card(tmp_path):
    save_source(tmp_path / "source", "detr")
    DetrImageProcessorPil(size={"shortest_edge": 320, "longest_edge": 500}, image_mean=[0.4, 0.5, 0.6]).save_pretrained(
        tmp_path / "source"
    )
    (tmp_path / "source" / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: someone/detr\n---\n")
    target = tmp_path / "target"
    start = warm_start_model(str(tmp_path / "source"), target, id2label={0: "cat"}, category_ids=[5])
    loaded = SapDetrForObjectDetection.from_pretrained(target)
    assert loaded.config.category_ids == [5]
    for name, tensor in start.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    processor = AutoImageProcessor.from_pretrained(target)
    assert (processor.size["shortest_edge"], processor.size["longest_edge"]) == (320, 500)
    assert list(processor.image_mean) == [0.4, 0.5, 0.6]
    card = (target / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert base_model_of(target) == "someone/detr"
    assert "| encoder.layers.*.ffn.fc1 | encoder.layers.*.mlp.fc1 | 6,240 |" in card
    assert "| decoder.layers.*.cross_attn.q_content_proj | decoder.layers.*.encoder_attn.q_proj * 1.7321 |" in card
    assert "| class_heads.*.layers.* | newly initialized |" in card
    assert "| encoder.layers.*.position_scale.layers.* | starts as the constant 1 | 16,640 |" in card
    assert str(tmp_path) not in card
    assert "Not taken: `query_position_embeddings`" in card
    with pytest.raises(ValueError, match="not an empty folder"):
        warm_start_model(str(tmp_path / "source"), target)


def test_command_writes_the_directory_and_prints_the_table(tmp_path, capsys):
    save_source(tmp_path / "source", "conditional_detr")
    assert main(["warm-start", str(tmp_path / "source"), str(tmp_path / "target")]) == 0
    printed = capsys.readouterr().out
    assert "| decoder.layers.*.cross_attn.k_position_proj | decoder.layers.*.encoder_attn.k_pos_proj |" in printed
    assert SapDetrForObjectDetection.from_pretrained(tmp_path / "target").config.position_temperature == 10000
    assert main(["warm-start", str(tmp_path / "nothing"), str(tmp_path / "other")]) == 2
    assert "nothing is not a local model directory" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_overrides_and_their_limits(tmp_path):
    save_source(tmp_path, "dab-detr")
    start = warm_start(str(tmp_path), query_grid=[3, 4], decoder_layers=4, sample_query_content=False)
    assert start.model.config.num_queries == 12
    assert "decoder.layers.2.ffn.fc1.weight" in start.taken
    assert "decoder.layers.3.ffn.fc1.weight" not in start.taken
    with pytest.raises(ValueError, match="leave widths as they are"):
        warm_start(str(tmp_path), encoder_ffn_dim=96)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("detr", {"position_embedding_type": "learned"}, "`position_embedding_type` is 'learned', not 'sine'"),
        ("dab-detr", {"temperature_width": 10}, "temperatures of height and width differ"),
        ("dab-detr", {"normalize_before": True}, "`normalize_before` is True"),
    ],
)
def test_sources_that_do_not_fit_are_named(tmp_path, kind, fields, message):
    save_source(tmp_path, kind, **fields)
    with pytest.raises(ValueError, match=re.escape(message)):
        warm_start(str(tmp_path))


def test_other_models_are_refused(tmp_path):
    ResNetConfig(**TINY).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a 'resnet' model; a SAP-DETR can start from dab-detr, detr"):
        warm_start(str(tmp_path))
    with pytest.raises(OSError, match="not a local model directory"):
        warm_start("no-such-owner/no-such-model")
