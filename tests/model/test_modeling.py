"""Invariants of the model: precision, padding, attention implementations, compilation, saving, initial weights."""

import math
from dataclasses import fields

import pytest
import torch
from tiny_model import TINY_BACKBONE, tiny_config, tiny_inputs, tiny_labels, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedConfig

from sap_detr_hf import SapDetrConfig, SapDetrForObjectDetection, SapDetrModel
from sap_detr_hf.model.backbone import SapDetrFrozenBatchNorm2d
from sap_detr_hf.model.salient_points import grid_logits

OUTPUTS = ("logits", "pred_boxes", "pred_points", "pred_objectness")


def largest_difference(ours, theirs) -> float:
    return max(float((ours[name].float() - theirs[name].float()).abs().max()) for name in OUTPUTS)


# --- Outputs ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_output_shapes_and_ranges():
    model = tiny_model()
    got = model(*tiny_inputs(), output_hidden_states=True, output_attentions=False)
    assert got.logits.shape == (2, 20, 6)
    assert got.pred_boxes.shape == (2, 20, 4)
    assert got.pred_points.shape == (2, 20, 2)
    assert got.pred_objectness.shape == (2, 20, 1)
    assert len(got.decoder_hidden_states) == 4
    assert len(got.encoder_hidden_states) == 3
    corner = model.model.query_points()
    assert (got.pred_points > corner).all(), "a point left its cell"
    assert (got.pred_points < corner + torch.tensor([1 / 5, 1 / 4])).all(), "a point left its cell"
    assert got.loss is None
    assert "auxiliary_outputs" not in got


@torch.no_grad()
def test_eager_attentions_are_recorded_and_normalized():
    model = SapDetrForObjectDetection._from_config(tiny_config(), attn_implementation="eager").eval()
    got = model(*tiny_inputs(), output_attentions=True)
    assert [a.shape for a in got.encoder_attentions] == [(2, 4, 12, 12)] * 2
    assert [a.shape for a in got.decoder_attentions] == [(2, 4, 20, 20)] * 3
    assert [a.shape for a in got.cross_attentions] == [(2, 4, 20, 12)] * 3
    for attention in (*got.encoder_attentions, *got.cross_attentions):
        assert torch.allclose(attention.sum(-1), torch.ones(()))
    valid = torch.zeros(3, 4, dtype=torch.bool)
    valid[:2, :3] = True
    for attention in (got.encoder_attentions[0][1], got.cross_attentions[-1][1]):
        assert attention[..., ~valid.flatten()].abs().max() == 0


@torch.no_grad()
def test_auxiliary_loss_changes_no_evaluation_output():
    model = tiny_model()
    inputs = tiny_inputs()
    with_auxiliary = model(*inputs)
    model.config.auxiliary_loss = False
    assert largest_difference(model(*inputs), with_auxiliary) == 0
    without = model(*inputs, labels=tiny_labels())
    assert largest_difference(without, with_auxiliary) == 0
    assert without.auxiliary_outputs is None
    assert not any(name[-1].isdigit() for name in without.loss_dict)


def test_auxiliary_outputs_are_the_earlier_layers():
    model = tiny_model()
    got = model(*tiny_inputs(), labels=tiny_labels())
    assert len(got.auxiliary_outputs) == 2
    assert {name for auxiliary in got.auxiliary_outputs for name in auxiliary} == set(OUTPUTS)
    shallow = tiny_model(decoder_layers=2)
    shallow.load_state_dict({k: v for k, v in model.state_dict().items() if k in shallow.state_dict()})
    assert largest_difference(shallow(*tiny_inputs()), got.auxiliary_outputs[1]) < 1e-5


@torch.no_grad()
def test_tuple_output():
    model = tiny_model()
    as_tuple = model(*tiny_inputs(), return_dict=False)
    assert torch.equal(as_tuple[0], model(*tiny_inputs()).logits)


# --- Padding ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_padding_content_changes_nothing_in_the_encoder():
    encoder = tiny_model().model.encoder
    generator = torch.Generator().manual_seed(3)
    tokens, positions = torch.randn(2, 2, 12, 32, generator=generator)
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, 7:] = False
    first = encoder(tokens, positions, attention_mask=mask).last_hidden_state
    changed = torch.where(mask[..., None], tokens, 50 * torch.randn(2, 12, 32, generator=generator))
    second = encoder(changed, positions, attention_mask=mask).last_hidden_state
    assert torch.equal(first[mask], second[mask])
    assert not torch.equal(first, second)


class _Patches(torch.nn.Module):
    """A backbone without overlap between its patches: an image's features do not see the padding."""

    def __init__(self, channels: int):
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, channels, kernel_size=32, stride=32)

    def forward(self, pixels):
        from transformers.modeling_outputs import BackboneOutput

        return BackboneOutput(feature_maps=(self.convolution(pixels),))


@torch.no_grad()
@pytest.mark.parametrize("sample_query_content", [True, False])
def test_batched_equals_single_with_the_valid_region_option(sample_query_content):
    model = tiny_model(valid_region=True, sample_query_content=sample_query_content)
    model.model.backbone = _Patches(32)
    pixels, mask = tiny_inputs(sizes=((128, 96), (64, 160), (128, 160)))
    batched = model(pixels, mask)
    for i, (height, width) in enumerate(((128, 96), (64, 160))):
        single = model(pixels[i : i + 1, :, :height, :width])
        for name in OUTPUTS:
            assert (single[name][0] - batched[name][i]).abs().max() < 1e-5, name
    model.config.valid_region = False
    assert largest_difference(model(pixels, mask), batched) > 1e-2, "the option does nothing"


@torch.no_grad()
def test_batched_is_close_to_single_through_a_convolutional_backbone():
    """Up to the convolutions' border, the valid-region option keeps a padded image's result."""
    pixels, mask = tiny_inputs(sizes=((320, 256), (224, 320)))
    distance = {}
    for valid_region in (True, False):
        model = tiny_model(valid_region=valid_region)
        batched, single = model(pixels, mask), model(pixels[1:, :, :224])
        distance[valid_region] = float((batched.pred_boxes[1] - single.pred_boxes[0]).abs().mean())
    assert distance[True] < 0.5 * distance[False]


@torch.no_grad()
def test_full_mask_equals_no_mask():
    model = tiny_model()
    pixels, _ = tiny_inputs(sizes=((96, 128),))
    for valid_region in (False, True):
        model.config.valid_region = valid_region
        masked = model(pixels, torch.ones(1, 96, 128, dtype=torch.long))
        assert largest_difference(masked, model(pixels)) < 1e-5


# --- Attention implementations, compilation, memory ------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("side_directed_gaussian", [True, False])
def test_sdpa_equals_eager(side_directed_gaussian):
    model = tiny_model(side_directed_gaussian=side_directed_gaussian)
    results = {}
    for name in ("eager", "sdpa"):
        model.set_attn_implementation({"": name, "backbone_config": "eager"})
        results[name] = model(*tiny_inputs())
    assert largest_difference(results["eager"], results["sdpa"]) < 1e-5


class _LargestTensor(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.shapes.update(tuple(t.shape) for t in tree_leaves(result) if isinstance(t, torch.Tensor))
        return result


@torch.no_grad()
def test_gaussian_is_never_materialised_over_coordinates():
    """Nothing larger than one bias per head exists: no (queries, tokens, 2), no three-part 96-wide keys."""
    model = tiny_model(query_grid=[10, 10], encoder_layers=1)
    pixels, mask = tiny_inputs(sizes=((256, 320), (192, 320)))
    with _LargestTensor() as seen:
        model(pixels, mask)
    tokens, queries, heads = 80, 100, 4
    assert (2, heads, queries, tokens) in seen.shapes, "the test does not see the bias"
    assert max(math.prod(shape) for shape in seen.shapes if {tokens, queries} <= set(shape)) <= 2 * 4 * queries * tokens
    assert not any(shape[-1] == 2 and tokens in shape and queries in shape for shape in seen.shapes if shape)
    assert (2, heads, tokens, 3 * 8) not in seen.shapes


def test_checkpointed_gradients_equal_plain():
    gradients = {}
    for checkpointing in (False, True):
        model = tiny_model().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.model.decoder.layers[0].gradient_checkpointing
        model(*tiny_inputs(), labels=tiny_labels()).loss.backward()
        gradients[checkpointing] = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert gradients[True].keys() == gradients[False].keys()
    for name, gradient in gradients[False].items():
        assert torch.allclose(gradients[True][name], gradient, rtol=1e-4, atol=1e-6), name


# --- Precision -------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_close_to_float32(dtype, autocast):
    model = tiny_model()
    pixels, mask = tiny_inputs()
    exact = model(pixels, mask, labels=tiny_labels())
    if autocast:
        with torch.autocast("cpu", dtype=dtype):
            got = model(pixels, mask, labels=tiny_labels())
    else:
        got = model.to(dtype)(pixels.to(dtype), mask, labels=tiny_labels())
    for name in ("pred_boxes", "pred_points", "loss"):
        assert got[name].dtype == torch.float32, name
    tolerance = 0.05 if dtype == torch.bfloat16 else 0.01
    assert (got.pred_boxes - exact.pred_boxes).abs().max() < tolerance
    assert (got.pred_points - exact.pred_points).abs().max() < tolerance
    assert (got.logits.float() - exact.logits).abs().max() < 4 * tolerance
    assert float(got.loss) == pytest.approx(float(exact.loss), rel=0.05)


@torch.no_grad()
def test_half_precision_survives_a_gaussian_far_from_the_image():
    model = tiny_model()
    for layer in model.model.decoder.layers:
        layer.gaussian.proj.layers[-1].bias.fill_(60.0)  # center at a side, 60 times narrower than a pixel
    pixels, mask = tiny_inputs()
    for dtype in (torch.float16, torch.bfloat16):
        got = model.to(dtype)(pixels.to(dtype), mask)
        assert got.logits.isfinite().all()
        assert got.pred_boxes.isfinite().all()


def test_points_stay_float32_in_half_precision(tmp_path):
    expected = grid_logits(4, 5)
    model = tiny_model()
    model.save_pretrained(tmp_path)
    for half in (model.half(), SapDetrForObjectDetection.from_pretrained(tmp_path, dtype=torch.bfloat16)):
        assert half.model.input_projection.weight.dtype != torch.float32
        assert half.model.query_points.weight.dtype == torch.float32
        assert torch.equal(half.model.query_points.weight, expected)
        assert not half.model.query_points.weight.requires_grad


# --- Saving, initial weights, freezing -------------------------------------------------------------------------------


def test_saved_equals_loaded(tmp_path, caplog):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded, report = SapDetrForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not caplog.records
    assert largest_difference(loaded.eval()(*tiny_inputs()), model(*tiny_inputs())) == 0
    assert {n for n, p in loaded.named_parameters() if not p.requires_grad} == {
        n for n, p in model.named_parameters() if not p.requires_grad
    }
    base = SapDetrModel.from_pretrained(tmp_path)
    assert torch.equal(base.query_sides.weight, model.model.query_sides.weight)


def test_parts_on_the_disk_change_nothing(tmp_path):
    """As `device_map="auto"` places what a GPU has no memory for."""
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    parts = [f"model.{name}" for name, _ in model.model.named_children()] + ["class_heads", "objectness_head"]
    places = {name: "cpu" if name == "model.backbone" else "disk" for name in parts}
    offloaded = SapDetrForObjectDetection.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "disk"
    )
    assert offloaded.model.query_sides.weight.is_meta
    assert largest_difference(offloaded(*tiny_inputs()), model(*tiny_inputs())) == 0


@pytest.mark.parametrize("build", ["constructor", "from_pretrained"])
@torch.no_grad()
def test_initial_weights(build):
    config = tiny_config(d_model=64, query_grid=[20, 20])
    if build == "constructor":
        model = SapDetrForObjectDetection(config)
    else:
        model = SapDetrForObjectDetection.from_pretrained(None, config=config, state_dict={})
    prior = -math.log(99)
    for head in (*model.class_heads, model.objectness_head):
        last = head if isinstance(head, torch.nn.Linear) else head.layers[-1]
        assert torch.allclose(last.bias, torch.tensor(prior))
        assert last.weight.abs().max() > 0
    for head in (*model.model.decoder.side_heads, *model.model.decoder.point_heads):
        assert head.layers[-1].weight.abs().max() == 0
        assert head.layers[-1].bias.abs().max() == 0
        assert head.layers[0].weight.abs().max() == pytest.approx(
            1 / 8, rel=0.02
        )  # PyTorch's default: 1 / sqrt(fan in)
    attention = model.model.encoder.layers[0].self_attn
    assert attention.q_proj.weight.abs().max() == pytest.approx(math.sqrt(6 / (4 * 64)), rel=0.02)  # drawn as (3d, d)
    assert attention.out_proj.weight.abs().max() == pytest.approx(math.sqrt(6 / (2 * 64)), rel=0.02)
    assert attention.q_proj.bias.abs().max() == attention.out_proj.bias.abs().max() == 0
    cross = model.model.decoder.layers[1].cross_attn
    assert cross.q_content_proj.bias.abs().max() > 0
    assert cross.q_box_sine_proj.weight.abs().max() == pytest.approx(math.sqrt(6 / (3 * 64)), rel=0.02)
    assert model.model.query_content.convolutions[0].weight.std() == pytest.approx(0.01, rel=0.05)
    assert model.model.query_sides.weight.std() == pytest.approx(1, rel=0.1)
    assert torch.equal(model.model.query_points.weight, grid_logits(20, 20))


def test_new_head_gets_the_prior_bias(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        SapDetrForObjectDetection.from_pretrained(tmp_path, num_labels=9)
    model = SapDetrForObjectDetection.from_pretrained(tmp_path, num_labels=9, ignore_mismatched_sizes=True)
    for head in model.class_heads:
        assert torch.allclose(head.layers[-1].bias, torch.tensor(-math.log(99)))
        assert head.layers[-1].weight.abs().max() > 0
    assert model(*tiny_inputs()).logits.shape == (2, 20, 9)


def test_frozen_parts_are_options():
    frozen = {n for n, p in tiny_model().model.backbone.named_parameters() if not p.requires_grad}
    assert frozen
    assert all(name.startswith(("embedder.", "encoder.stages.0.")) for name in frozen)
    assert not [m for m in tiny_model().modules() if isinstance(m, torch.nn.BatchNorm2d)]
    free = tiny_model(frozen_backbone_stages=0, freeze_backbone_batch_norm=False)
    assert all(p.requires_grad for p in free.model.backbone.parameters())
    assert [m for m in free.modules() if isinstance(m, torch.nn.BatchNorm2d)]


def test_norm_in_place_changes_no_number():
    """Of a ResNet's norms without gradients; with them, and of other backbones, input and output are separate."""
    model = tiny_model()
    norms = [m for m in model.modules() if isinstance(m, SapDetrFrozenBatchNorm2d)]
    assert norms
    assert all(norm.inplace for norm in norms)
    for norm in norms:
        norm.eps = 0.5  # a factor other than 1
    wanted = model.model.backbone(tiny_inputs()[0]).feature_maps[-1]
    assert wanted.requires_grad
    with torch.no_grad():
        assert torch.equal(model.model.backbone(tiny_inputs()[0]).feature_maps[-1], wanted)
        values = torch.ones(1, 2, 3, 3)
        norm = SapDetrFrozenBatchNorm2d(2, eps=3, inplace=True)
        assert norm(values) is values
    assert (values == 0.5).all()
    assert norm(values) is not values
    timm = tiny_model(backbone_config={"model_type": "timm_backbone", "backbone": "resnet18"})
    assert not any(m.inplace for m in timm.modules() if isinstance(m, SapDetrFrozenBatchNorm2d))


@torch.no_grad()
def test_dilation_doubles_the_resolution():
    plain, dilated = tiny_model(), tiny_model(dilation=True)
    pixels, _ = tiny_inputs()
    assert plain.model.backbone(pixels).feature_maps[-1].shape[-2:] == (3, 4)
    assert dilated.model.backbone(pixels).feature_maps[-1].shape[-2:] == (6, 8)


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0"])
def test_timm_backbone(name):
    backbone = {"model_type": "timm_backbone", "backbone": name, "out_indices": [-1], "use_pretrained_backbone": False}
    pixels, mask = tiny_inputs()
    trainable = tiny_model(backbone_config=backbone, frozen_backbone_stages=0, freeze_backbone_batch_norm=False)
    frozen = tiny_model(backbone_config=backbone, frozen_backbone_stages=1)
    assert not [m for m in frozen.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    state = {k: v for k, v in trainable.state_dict().items() if "num_batches_tracked" not in k}
    frozen.load_state_dict(state)
    with torch.no_grad():
        assert largest_difference(frozen(pixels, mask), trainable(pixels, mask)) < 1e-4
    names = {n for n, p in frozen.model.backbone.named_parameters() if not p.requires_grad}
    assert names
    assert all(any(part in n for part in ("conv1.", "conv_stem", "layer1.", "blocks.0.")) for n in names)
    frozen.train()(pixels, mask, labels=tiny_labels()).loss.backward()


def test_backbone_without_stages_to_freeze_is_refused():
    backbone = {"model_type": "timm_backbone", "backbone": "tf_efficientnet_lite0", "out_indices": [-1]}
    with pytest.raises(ValueError, match="frozen_backbone_stages=0"):
        tiny_model(backbone_config=backbone, frozen_backbone_stages=20)


# --- Configuration ---------------------------------------------------------------------------------------------------

CHANGES = {
    "backbone_config": {**TINY_BACKBONE, "depths": [1, 1, 1, 1]},
    "dilation": True,
    "freeze_backbone_batch_norm": False,
    "frozen_backbone_stages": 2,
    "query_grid": [5, 4],
    "sample_query_content": False,
    "share_box_heads": True,
    "side_directed_gaussian": False,
    "prediction_grid": [2, 2],
    "valid_region": True,
    "point_update": "exact",
    "inner_loss": "distance",
    "d_model": 64,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "activation_function": "gelu",
    "dropout": 0.3,
    "attention_dropout": 0.3,
    "position_temperature": 10.0,
    "auxiliary_loss": False,
    "class_cost": 200.0,
    "bbox_cost": 500.0,
    "giou_cost": 200.0,
    "outside_cost": 0.0,
    "class_loss_coefficient": 3.0,
    "objectness_loss_coefficient": 3.0,
    "bbox_loss_coefficient": 3.0,
    "giou_loss_coefficient": 3.0,
    "inner_loss_coefficient": 3.0,
    "class_loss": "varifocal",
    "focal_alpha": 0.4,
    "focal_gamma": 1.0,
    "num_labels": 7,
}


def _signature(**change):
    torch.manual_seed(0)
    model = tiny_model(**change).train()
    torch.manual_seed(1)
    labels = tiny_labels(counts=(18, 16), seed=5)  # nearly as many boxes as queries: points outside boxes occur
    got = model(*tiny_inputs(), labels=labels)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    return sum(p.numel() for p in model.parameters()), frozen, round(float(got.loss.detach()), 4)


def test_changes_name_every_field():
    own = {field.name for field in fields(SapDetrConfig)} - {field.name for field in fields(PreTrainedConfig)}
    # Tested beside their code: test_corrections.py, test_groups.py, test_denoising.py; or without effect on a loss.
    elsewhere = {"point_start", "head_points", "num_groups", "group_content", "num_channels", "num_queries"}
    elsewhere |= {name for name in own if name.startswith("denoising_")}
    elsewhere |= {"inference_only", "category_ids", "tie_word_embeddings"}
    assert own - CHANGES.keys() - elsewhere == set()


@pytest.mark.parametrize("field", CHANGES)
def test_every_configuration_field_is_read(field):
    assert _signature() == _signature()
    assert _signature(**{field: CHANGES[field]}) != _signature()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_queries": 300}, "query_grid="),
        ({"query_grid": [3, 4], "num_queries": 13}, "3 x 4 has 12 reference points"),
        ({"query_grid": [3]}, "rows, columns"),
        ({"prediction_grid": [20]}, "`prediction_grid` must be"),
        ({"d_model": 250}, "cannot be split into `encoder_attention_heads` = 8"),
        ({"d_model": 48}, "GroupNorm"),
        ({"d_model": "wide"}, "expected int"),
        ({"decoder_layers": 0}, "at least 1"),
        ({"frozen_backbone_stages": -1}, "0 or more"),
        ({"category_ids": [1]}, "one distinct id for each of the 2 classes"),
        ({"num_channels": 4}, "takes 3 channels"),
        ({"backbone_config": {"model_type": "no-such-type"}}, "does not know"),
        ({"backbone_config": {"model_type": "convnext"}, "dilation": True}, "needs a `resnet` backbone"),
    ],
)
def test_configuration_errors_say_what_to_change(fields, message):
    with pytest.raises(Exception, match=message) as caught:
        SapDetrConfig(**fields)
    assert isinstance(caught.value, ValueError) or type(caught.value).__name__.startswith("StrictDataclass")


def test_another_grid_leaves_the_released_heads_cell(tmp_path):
    SapDetrConfig(num_queries=100, prediction_grid=[20, 20]).save_pretrained(tmp_path)
    assert SapDetrConfig.from_pretrained(tmp_path).prediction_grid == [20, 20]
    assert SapDetrConfig.from_pretrained(tmp_path, query_grid=[5, 6]).prediction_grid is None


def test_learned_activation_starts_as_in_pytorch(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    model = SapDetrForObjectDetection.from_pretrained(tmp_path, activation_function="prelu")
    slopes = [value for name, value in model.state_dict().items() if "ffn.activation" in name]
    assert [value.tolist() for value in slopes] == [[0.25]] * 5  # 2 encoder and 3 decoder layers


def test_published_variants():
    shapes = {"r50": (4, False, 6), "r50-dc5": (4, True, 6), "r101": (4, False, 23), "r101-dc5": (4, True, 23)}
    for name, (stages, dilation, third) in shapes.items():
        config = SapDetrConfig.from_variant(name)
        assert (len(config.backbone_config.depths), config.dilation, config.backbone_config.depths[2]) == (
            stages,
            dilation,
            third,
        )
        assert config.num_labels == 91
        assert config.id2label[90] == "toothbrush"
        assert len(set(config.id2label.values())) == 91
        assert (config.num_queries, config.query_grid) == (306, [17, 18])
        assert SapDetrConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    with pytest.raises(ValueError, match="r50-dc5"):
        SapDetrConfig.from_variant("r18")
    assert SapDetrConfig.from_variant("r50", num_labels=4).num_labels == 4


def test_other_names_of_as_many_classes_drop_the_category_ids(tmp_path):
    names = {index: f"cat {index}" for index in range(6)}
    tiny_model(id2label=names, category_ids=[3, 5, 7, 9, 11, 13]).save_pretrained(tmp_path)
    as_text = {str(index): name for index, name in names.items()}
    for same in ({}, {"id2label": names}, {"id2label": as_text}):
        config = SapDetrForObjectDetection.from_pretrained(tmp_path, **same).config
        assert (config.id2label, config.category_ids) == (names, [3, 5, 7, 9, 11, 13])
    dogs = {str(index): f"dog {index}" for index in range(6)}
    config = SapDetrForObjectDetection.from_pretrained(tmp_path, id2label=dogs).config
    assert (config.id2label[5], config.category_ids) == ("dog 5", None)
    config = SapDetrForObjectDetection.from_pretrained(tmp_path, id2label=dogs, category_ids=[1, 2, 3, 4, 5, 6]).config
    assert config.category_ids == [1, 2, 3, 4, 5, 6]
