"""A SAP-DINO-DETR started from a Deformable DETR: what is taken computes the same as in transformers."""

import copy
import re

import pytest
import torch
from source_detectors import SMALL, WIDTH, save_source
from tiny_model import tiny_inputs

from sap_detr_cli.main import main
from sap_detr_hf import SapDinoDetrForObjectDetection
from sap_detr_hf.model.salient_points import boxes_from_sides
from sap_detr_hf.model.token_pyramid import token_pyramid
from sap_detr_hf.weights.warm_start import base_model_of, warm_start

KINDS = {
    "plain": {},
    "box refinement": {"with_box_refine": True},
    "two stages": {"with_box_refine": True, "two_stage": True, "two_stage_num_proposals": 12},
}
BOX_LAYERS = {"plain": [], "box refinement": [1, 2], "two stages": [0, 1, 2]}
SIZES = ((128, 160), (96, 100))


@pytest.fixture(scope="module", params=KINDS)
def started(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("source")
    theirs = save_source(directory, "deformable_detr", **KINDS[request.param])
    return request.param, theirs, warm_start(str(directory)), directory


@torch.no_grad()
def their_encoding(theirs, *inputs):
    return theirs(*inputs).encoder_last_hidden_state


@torch.no_grad()
def test_encoder_computes_the_same_without_padding(started):
    _, theirs, start, _ = started
    pixels, _ = tiny_inputs(((128, 160), (128, 160)))
    expected = their_encoding(theirs, pixels)
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(start.model(pixels).encoder_last_hidden_state, expected, rtol=0, atol=1e-5)


class _EachAlone(torch.nn.Module):
    """A backbone that sees each image without its padding, which a ResNet's last columns would otherwise notice."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, pixels):
        whole = self.backbone(pixels)
        for index, (height, width) in enumerate(SIZES):
            alone = self.backbone(pixels[index : index + 1, :, :height, :width]).feature_maps
            for full, part in zip(whole.feature_maps, alone, strict=True):
                full[index, :, : part.shape[2], : part.shape[3]] = part[0]
        return whole


@torch.no_grad()
def test_encoder_computes_for_each_padded_image_what_the_source_computes_for_it_alone(started):
    """Not what the source computes in the same batch: its GroupNorm counts the padding."""
    _, theirs, start, _ = started
    pixels, mask = tiny_inputs(SIZES)
    model = copy.deepcopy(start.model)
    model.model.backbone = _EachAlone(model.model.backbone)
    ours = model(pixels, mask).encoder_last_hidden_state
    (tokens,) = {len(each) for each in ours}
    levels = [(16, 20), (8, 10), (4, 5), (2, 3)]
    assert sum(h * w for h, w in levels) == tokens
    for index, (height, width) in enumerate(SIZES):
        expected = their_encoding(theirs, pixels[index : index + 1, :, :height, :width])[0]
        alone = [(-(-height // stride), -(-width // stride)) for stride in (8, 16, 32, 64)]
        for own, full, values in zip(
            ours[index].split([h * w for h, w in levels]),
            levels,
            expected.split([h * w for h, w in alone]),
            strict=True,
        ):
            h, w = alone[levels.index(full)]
            torch.testing.assert_close(own.unflatten(0, full)[:h, :w].flatten(0, 1), values, rtol=0, atol=1e-5)


def test_every_tensor_taken_is_the_sources(started):
    kind, theirs, start, _ = started
    source, ours = theirs.model.state_dict(), start.model.model.state_dict()
    for name, (their_name, factor) in start.taken.items():
        if their_name.startswith("backbone."):
            their_name = "backbone.model." + their_name.removeprefix("backbone.")
        assert factor == 1
        assert torch.equal(ours[name], source[their_name]), name
    backbone = [name for name in ours if name.startswith("backbone.")]
    encoder = [name for name in ours if name.startswith(("encoder.", "input_projection.", "level_embeddings."))]
    assert set(backbone + encoder) <= start.taken.keys()
    parts = {re.sub(r"\d+", "*", name).rsplit(".", 1)[0] for name in ours if name not in start.taken}
    wanted = {"query_content", "decoder.layer_norm", "decoder.query_position_head.layers.*"}
    wanted |= {f"{module}.layers.*" for module in ("decoder.side_heads.*", "decoder.point_heads.*")}
    wanted |= {f"selection.{name}" for name in ("class_head", "objectness_head", "side_head.layers.*")}
    wanted |= {"selection.point_head.layers.*"}
    if kind != "two stages":
        wanted |= {"selection.projection", "selection.layer_norm"}
        wanted |= {f"decoder.layers.*.cross_attn.{name}" for name in ("sampling_offsets", "attention_weights")}
    assert parts == wanted
    offsets = {name for name in start.taken if name.startswith("decoder") and "sampling_offsets.weight" in name}
    assert offsets == {f"decoder.layers.{i}.cross_attn.sampling_offsets.weight" for i in BOX_LAYERS[kind]}


@torch.no_grad()
def test_decoder_layers_around_boxes_compute_the_same(started):
    """With points in the middle of their boxes, as DINO's and Deformable DETR's queries are."""
    kind, theirs, start, _ = started
    maps = [torch.randn(2, WIDTH, h, w) for h, w in ((6, 8), (3, 4), (2, 2), (1, 1))]
    pyramid = token_pyramid(maps, None)
    memory = torch.cat([tokens.flatten(2).transpose(1, 2) for tokens in maps], dim=1)
    states, positions = torch.randn(2, 5, WIDTH), torch.randn(2, 5, WIDTH)
    points, half = 0.3 + 0.4 * torch.rand(2, 5, 2), 0.05 + 0.2 * torch.rand(2, 5, 2)
    sides = torch.cat([half, half], dim=-1)
    boxes = boxes_from_sides(points, sides)[:, :, None].expand(-1, -1, 4, -1)
    shapes = torch.tensor(pyramid.shapes)
    for index, layer in enumerate(start.model.model.decoder.layers):
        ours = layer(states, positions, points, sides, memory, pyramid, None, None)
        expected = theirs.model.decoder.layers[index](
            states, positions, boxes, shapes, pyramid.shapes, pyramid.starts, memory
        )
        same = torch.allclose(ours, expected, rtol=0, atol=1e-5)
        assert same == (index in BOX_LAYERS[kind])


def test_configuration_follows_the_source(started):
    _, _, start, _ = started
    config = start.model.config
    assert (config.token_position_temperature, config.token_position_offset) == (10000, 0.5)
    assert config.position_temperature == 20
    assert (config.encoder_ffn_dim, config.decoder_ffn_dim, config.d_model) == (48, 56, WIDTH)
    assert config.backbone_config.out_features == ["stage2", "stage3", "stage4"]
    assert config.id2label == SMALL["id2label"]


def test_command_writes_the_directory_with_table_and_card(started, tmp_path, capsys):
    kind, _, start, directory = started
    (directory / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: someone/deformable\n---\n")
    assert main(["warm-start", str(directory), str(tmp_path / "target")]) == 0
    printed = capsys.readouterr().out
    assert "| level_embeddings | level_embed | 256 |" in printed
    assert "| encoder.layers.*.self_attn.sampling_offsets | encoder.layers.*.self_attn.sampling_offsets |" in printed
    assert ("| selection.projection | enc_output |" in printed) == (kind == "two stages")
    assert "| query_content | newly initialized |" in printed
    card = (tmp_path / "target" / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "# SAP-DINO-DETR started from someone/deformable" in card
    assert base_model_of(tmp_path / "target") == "someone/deformable"
    loaded = SapDinoDetrForObjectDetection.from_pretrained(tmp_path / "target").state_dict()
    for name in start.taken:
        assert torch.equal(loaded[f"model.{name}"], start.model.state_dict()[f"model.{name}"])


def test_timm_backbone_and_one_level(tmp_path):
    pytest.importorskip("timm")
    theirs = save_source(tmp_path, "deformable_detr", backbone="resnet18", num_feature_levels=1)
    ours = warm_start(str(tmp_path)).model
    assert ours.config.backbone_config.out_features == ["stage4"]
    pixels, _ = tiny_inputs(((96, 128),))
    with torch.no_grad():
        encoded = ours(pixels).encoder_last_hidden_state
    torch.testing.assert_close(encoded, their_encoding(theirs, pixels), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "overrides", "message"),
    [
        ({"position_embedding_type": "learned"}, {}, "`position_embedding_type` is 'learned', not 'sine'"),
        ({"dilation": True}, {}, "`dilation` is True, not False"),
        ({}, {"encoder_ffn_dim": 96}, "leave widths as they are"),
        ({}, {"query_grid": [3, 4]}, "`query_grid` is not a field of SapDinoDetrConfig"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, fields, overrides, message):
    save_source(tmp_path, "deformable_detr", **fields)
    with pytest.raises(ValueError, match=re.escape(message)):
        warm_start(str(tmp_path), **overrides)
