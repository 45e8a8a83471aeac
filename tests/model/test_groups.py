"""Groups of queries: apart in self-attention and matching, one normalizer, and a base model in evaluation."""

import copy

import pytest
import torch
from tiny_model import tiny_config, tiny_inputs, tiny_labels, tiny_model

from sap_detr_hf import SapDetrConfig, SapDetrForObjectDetection, SapDetrModel
from sap_detr_hf.model.configuration_sap_detr import FURTHER_VARIANTS, PUBLISHED_VARIANTS
from sap_detr_hf.model.loss import sap_detr_loss

OUTPUTS = ("logits", "pred_boxes", "pred_points", "pred_objectness")
FIELDS = (*OUTPUTS, "last_hidden_state", "intermediate_hidden_states", "intermediate_box_sides")
GROUPS = 3


def base_of(model, **fields):
    """A base SAP-DETR with the tensors of a model with groups."""
    base = SapDetrForObjectDetection(tiny_config(**fields)).train(model.training)
    base.load_state_dict({name: value for name, value in model.state_dict().items() if "query_groups" not in name})
    return base


def grouped(**fields):
    return tiny_model(num_groups=GROUPS, **fields).train()


def equal_groups(**fields):
    model = grouped(**fields)
    sides = model.model.query_sides.weight.data
    model.model.query_groups.sides.weight.data = sides.repeat(GROUPS - 1, 1)
    return model


def test_names_and_shapes():
    extra = {name: tuple(value.shape) for name, value in grouped(group_content=True).state_dict().items()}
    for name, value in tiny_model().state_dict().items():
        assert extra.pop(name) == tuple(value.shape)
    assert extra == {"model.query_groups.sides.weight": (40, 4), "model.query_groups.content.weight": (2, 32)}
    fresh = SapDetrForObjectDetection(tiny_config(num_groups=40, group_content=True)).model
    assert fresh.query_groups.sides.weight.std().item() == pytest.approx(1, abs=0.1)
    assert fresh.query_groups.content.weight.std().item() == pytest.approx(0.02, abs=0.002)


@pytest.mark.parametrize("group_content", [False, True])
@torch.no_grad()
def test_evaluated_it_is_the_base_model(group_content):
    model = grouped(group_content=group_content).eval()
    got, expected = (each(*tiny_inputs(), labels=tiny_labels()) for each in (model, base_of(model).eval()))
    for name in (*FIELDS, "loss"):
        assert torch.equal(got[name], expected[name])


def test_other_groups_change_no_output_of_the_first():
    model, base = grouped(), base_of(grouped())
    outputs = [base(*tiny_inputs(), labels=tiny_labels())]
    for _ in range(2):
        outputs.append(model(*tiny_inputs(), labels=tiny_labels()))
        model.model.query_groups.sides.weight.data.normal_()
    for name in FIELDS:
        torch.testing.assert_close(outputs[1][name], outputs[0][name], rtol=0, atol=1e-5)
        torch.testing.assert_close(outputs[2][name], outputs[1][name], rtol=0, atol=1e-6)
    assert not torch.equal(outputs[1].loss, outputs[2].loss)
    assert outputs[1].auxiliary_outputs[0]["logits"].shape == (2, 20, 6)


@pytest.mark.parametrize("num_boxes", [None, 7.0])
def test_equal_groups_have_the_loss_and_gradients_of_the_base(num_boxes):
    model = equal_groups()
    base = base_of(model)
    outputs = [each(*tiny_inputs(), labels=tiny_labels(), num_boxes=num_boxes) for each in (model, base)]
    for each in outputs:
        each.loss.backward()
    torch.testing.assert_close(outputs[0].loss, outputs[1].loss, rtol=1e-5, atol=1e-5)
    assert outputs[0].loss_dict.keys() == outputs[1].loss_dict.keys()
    for name, value in outputs[1].loss_dict.items():
        torch.testing.assert_close(outputs[0].loss_dict[name], value, rtol=1e-5, atol=1e-5)
    found = dict(model.named_parameters())
    for name, parameter in base.named_parameters():
        if parameter.grad is not None:
            share = GROUPS if name == "model.query_sides.weight" else 1
            torch.testing.assert_close(share * found[name].grad, parameter.grad, rtol=1e-3, atol=1e-5)
    apart = found["model.query_groups.sides.weight"].grad.view(GROUPS - 1, 20, 4)
    for gradient in apart:
        torch.testing.assert_close(gradient, found["model.query_sides.weight"].grad, rtol=1e-3, atol=1e-5)


def test_each_group_is_matched_by_itself():
    """The loss is the mean of the base model's losses with each group's sides."""
    model = grouped()
    base = base_of(model)
    sides = [base.model.query_sides.weight.data.clone(), *model.model.query_groups.sides.weight.data.view(2, 20, 4)]
    alone = []
    for each in sides:
        base.model.query_sides.weight.data = each.clone()
        alone.append(base(*tiny_inputs(), labels=tiny_labels()))
    got = model(*tiny_inputs(), labels=tiny_labels())
    torch.testing.assert_close(got.loss, torch.stack([each.loss for each in alone]).mean(), rtol=1e-5, atol=1e-5)
    for name, value in got.loss_dict.items():
        values = torch.stack([each.loss_dict[name] for each in alone])
        wanted = values[0] if name == "class_error" else values.float().mean()
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-5)


def test_losses_are_means_of_the_groups_but_the_class_error_is_the_firsts():
    torch.manual_seed(0)
    shapes = {"logits": 6, "pred_boxes": 4, "pred_points": 2, "pred_objectness": 1}
    outputs = {name: torch.rand(2, 2, 20 * GROUPS, width) for name, width in shapes.items()}
    labels, config = tiny_labels((9, 8)), tiny_config()
    loss, got = sap_detr_loss(**outputs, labels=labels, config=config, num_groups=GROUPS)
    parts = ({name: value[:, :, 20 * g : 20 * (g + 1)] for name, value in outputs.items()} for g in range(GROUPS))
    losses, dicts = zip(*(sap_detr_loss(**part, labels=labels, config=config) for part in parts), strict=True)
    assert len({float(each["class_error"]) for each in dicts}) > 1
    assert got["class_error"] == dicts[0]["class_error"]
    torch.testing.assert_close(loss, torch.stack(losses).mean())
    torch.testing.assert_close(got["loss_giou_0"], torch.stack([each["loss_giou_0"] for each in dicts]).mean())


@torch.no_grad()
def test_self_attention_equals_one_with_a_mask():
    attention = grouped().model.decoder.layers[0].self_attn
    states = [torch.randn(2, 20 * GROUPS + 6, 32) for _ in range(3)]
    noisy = torch.zeros(2, 1, 6, 6).masked_fill(torch.rand(2, 1, 6, 6) < 0.3, torch.finfo(torch.float32).min)
    noisy.diagonal(dim1=2, dim2=3).zero_()
    got, _ = attention(*states, noisy)
    mask = torch.full((2, 1, 66, 66), torch.finfo(torch.float32).min)
    for group in range(GROUPS):
        rows = slice(20 * group, 20 * (group + 1))
        mask[..., rows, rows] = 0
    mask[..., 60:, 60:] = noisy
    attention.config.num_queries = 66
    try:
        expected, _ = attention(*states, attention_mask=mask)
    finally:
        attention.config.num_queries = 20
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("group_content", [False, True])
def test_from_the_base_to_groups_and_back(group_content, tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    fields = {"num_groups": GROUPS, "group_content": group_content}
    model = SapDetrForObjectDetection.from_pretrained(tmp_path / "base", **fields)
    sides = model.model.query_sides.weight.repeat(GROUPS - 1, 1)
    distance = (model.model.query_groups.sides.weight - sides).detach()
    assert distance.std().item() == pytest.approx(0.5, abs=0.1)
    assert distance.mean().abs() < 0.15
    saved = model.model.query_groups.sides.weight.clone()
    model.save_pretrained(tmp_path / "groups")
    again = SapDetrForObjectDetection.from_pretrained(tmp_path / "groups")
    assert torch.equal(again.model.query_groups.sides.weight, saved), "groups that were saved are not drawn anew"
    back, loading = SapDetrForObjectDetection.from_pretrained(
        tmp_path / "groups", num_groups=1, output_loading_info=True
    )
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    fewer = SapDetrForObjectDetection.from_pretrained(
        tmp_path / "groups", num_groups=GROUPS - 1, group_content=group_content, ignore_mismatched_sizes=True
    )
    distance = fewer.model.query_groups.sides.weight - fewer.model.query_sides.weight
    assert distance.std().item() == pytest.approx(0.5, abs=0.15)
    again.drop_training_queries()
    again.save_pretrained(tmp_path / "dropped")
    dropped = SapDetrForObjectDetection.from_pretrained(tmp_path / "dropped")
    for each in (back, dropped):
        assert each.config.num_groups == 1
        assert each.state_dict().keys() == tiny_model().state_dict().keys()
        assert all(torch.equal(each.state_dict()[name], value) for name, value in tiny_model().state_dict().items())
    body = SapDetrModel.from_pretrained(tmp_path / "base", num_groups=2)
    assert (body.query_groups.sides.weight - body.query_sides.weight).std().item() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_no_gradient(reentrant):
    plain, model = grouped(), grouped()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for each in (plain, model):
        each(*tiny_inputs(), labels=tiny_labels()).loss.backward()
    for first, second in zip(plain.parameters(), model.parameters(), strict=True):
        if first.grad is not None:
            torch.testing.assert_close(second.grad, first.grad, rtol=1e-4, atol=1e-4)


def test_recorded_self_attentions_are_those_of_each_group():
    model = grouped()
    model.set_attn_implementation({"": "eager"})
    got = model(*tiny_inputs(), output_attentions=True, output_hidden_states=True)
    assert [tuple(each.shape) for each in got.decoder_attentions] == [(2 * GROUPS, 4, 20, 20)] * 3
    assert got.decoder_hidden_states[0].shape == (2, 20 * GROUPS, 32)


@torch.no_grad()
def test_optimized_for_inference():
    model = grouped().eval()
    fast = copy.deepcopy(model).optimize_for_inference()
    for name in OUTPUTS:
        torch.testing.assert_close(fast(*tiny_inputs())[name], model(*tiny_inputs())[name], rtol=0, atol=1e-5)


def test_too_many_boxes_of_an_image_are_named():
    with pytest.raises(ValueError, match="21 boxes but the model has only 20 queries"):
        grouped()(*tiny_inputs(), labels=tiny_labels((21, 1)))


def test_one_group_does_not_enter_the_code_of_groups(monkeypatch):
    monkeypatch.setattr("sap_detr_hf.model.modeling_sap_detr.attend_apart", None)
    model = tiny_model(num_groups=1).train()
    model(*tiny_inputs(), labels=tiny_labels()).loss.backward()
    assert model.model.query_groups is None


def test_no_group_is_refused():
    with pytest.raises(Exception, match="`num_groups` = 0 must be at least 1"):
        SapDetrConfig(num_groups=0)


@pytest.mark.parametrize("name", FURTHER_VARIANTS)
def test_further_variants_are_corrected_and_cost_a_base_model_in_inference(name):
    config = SapDetrConfig.from_variant(name)
    assert (config.point_start, config.point_update) == ("center", "exact")
    assert (config.head_points, config.inner_loss, config.valid_region) == ("current", "distance", True)
    assert config.num_groups > 1 or config.denoising_pairs
    assert config.num_labels == 91
    assert SapDetrConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    with torch.device("meta"):
        model = SapDetrForObjectDetection(config)
        base = SapDetrForObjectDetection(SapDetrConfig.from_variant("r50-dc5" if "dc5" in name else "r50"))
    model.drop_training_queries()
    shapes, expected = ({key: value.shape for key, value in each.state_dict().items()} for each in (model, base))
    assert shapes == expected
    assert name not in PUBLISHED_VARIANTS
