"""The corrections of the released rules: where points start, how they move, and what they cost outside their box."""

import copy

import pytest
import torch
from tiny_model import tiny_config, tiny_inputs, tiny_labels, tiny_model

from sap_detr_hf import SapDetrConfig
from sap_detr_hf.model.loss import inner_losses

CORRECTED = {"point_start": "center", "point_update": "exact", "head_points": "current", "inner_loss": "distance"}
CELL = torch.tensor([1 / 5, 1 / 4])  # of the tiny model's 4 x 5 grid


def entered_points(model):
    """The points that entered each decoder layer in evaluation mode, (D, B, N, 2), and the outputs."""
    seen = []
    hooks = [
        layer.gaussian.register_forward_hook(lambda module, arguments, output: seen.append(arguments[1]))
        for layer in model.model.decoder.layers
    ]
    outputs = model.eval()(*tiny_inputs())
    for hook in hooks:
        hook.remove()
    return torch.stack(seen), outputs


def without_point_steps(model):
    for head in model.model.decoder.point_heads:
        torch.nn.init.zeros_(head.layers[-1].weight)
        torch.nn.init.zeros_(head.layers[-1].bias)
    return model


@torch.no_grad()
def test_points_start_at_the_center_and_stay_until_a_head_moves_them():
    model = without_point_steps(tiny_model(point_start="center", point_update="exact"))
    center = model.model.query_points() + CELL / 2
    points, outputs = entered_points(model)
    torch.testing.assert_close(points, center.expand_as(points), rtol=0, atol=1e-6)
    torch.testing.assert_close(outputs.pred_points, center.expand_as(outputs.pred_points), rtol=0, atol=1e-6)
    released = without_point_steps(tiny_model(point_start="corner"))
    _, outputs = entered_points(released)
    assert (outputs.pred_points - model.model.query_points()).max() < 0.01


@torch.no_grad()
def test_content_is_sampled_where_the_points_start():
    model = tiny_model(point_start="center", point_update="exact")
    seen = []
    model.model.query_content.register_forward_hook(lambda module, arguments, output: seen.append(arguments[1]))
    model(*tiny_inputs())
    assert torch.equal(seen[0][1], model.model.query_points() + CELL / 2)


@pytest.mark.parametrize("fields", [{"point_update": "exact"}, {"point_update": "exact", "point_start": "center"}])
@torch.no_grad()
def test_an_exact_update_adds_to_the_logit_of_the_place_in_the_cell(fields):
    model = tiny_model(**fields)
    corners, states = model.model.query_points(), torch.randn(1, 20, 32)
    points = corners + CELL * torch.linspace(0.1, 0.9, 20)[:, None]
    moved = model.model.decoder.refine_points(0, states, points[None], corners)
    place = ((points - corners) / CELL).logit() + model.model.decoder.point_heads[0](states)
    torch.testing.assert_close(moved, corners + CELL * place.sigmoid(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("fields", [CORRECTED, {"point_update": "exact"}, {"head_points": "current"}])
@torch.no_grad()
def test_points_stay_in_their_cells(fields):
    model = tiny_model(**fields)
    for head in model.model.decoder.point_heads:
        head.layers[-1].weight *= 10
    corners = model.model.query_points()
    points, outputs = entered_points(model)
    for each in (*points, outputs.pred_points):
        assert (each >= corners).all()
        assert (each <= corners + CELL + 1e-6).all()


def test_heads_refine_the_point_of_their_own_layer_and_teach_the_layer_before():
    for rule, shift in (("current", 0), ("previous", 1)):
        model = tiny_model(head_points=rule)
        points, outputs = entered_points(model)
        recorded = outputs.intermediate_reference_points
        wanted = [points[max(i - shift, 0)] for i in range(3)]
        torch.testing.assert_close(recorded, torch.stack(wanted), rtol=0, atol=0)
        outputs.pred_points.sum().backward()
        last, before, first = (head.layers[-1].weight.grad for head in reversed(model.model.decoder.point_heads))
        assert last.abs().max() > 0
        assert (before is not None and before.abs().max() > 0) == (rule == "current")
        # The points that enter a layer carry no gradient into it
        assert first is None or first.abs().max() == 0


def test_distance_outside_a_box():
    corners = torch.tensor([0.4, 0.2, 0.6, 0.8])
    points = torch.tensor([[0.5, 0.5], [0.4, 0.2], [0.3, 0.5], [0.5, 1.1], [0.7, 0.1], [-9.0, 0.5]], requires_grad=True)
    losses = inner_losses(points, corners, tiny_config(inner_loss="distance"))
    z = torch.tensor([0, 0, 0.5, 0.5, 0.5 + 1 / 6, 47])
    torch.testing.assert_close(losses["loss_inner"], z / (1 + z))
    assert losses["loss_inner_share"].tolist() == [False, False, True, True, True, True]
    losses["loss_inner"].sum().backward()
    assert points.grad[:2].abs().max() == 0
    assert points.grad[2, 0] < 0 < points.grad[3, 1]  # against the gradient is into the box
    assert points.grad[2, 1] == points.grad[3, 0] == 0
    step = inner_losses(points, corners, tiny_config())
    assert step.keys() == {"loss_inner"}
    assert torch.equal(step["loss_inner"], losses["loss_inner_share"])
    narrow = torch.tensor([0.4, 0.2, 0.4004, 0.8])  # counts as 0.001 wide
    losses = inner_losses(torch.tensor([0.3, 0.5]), narrow, tiny_config(inner_loss="distance"))
    assert float(losses["loss_inner"]) == pytest.approx(100 / 101, abs=1e-6)


def test_both_rules_report_the_share_outside():
    labels = tiny_labels((18, 16), seed=5)  # nearly as many boxes as queries: points outside boxes occur
    step = tiny_model()(*tiny_inputs(), labels=labels).loss_dict
    distance = tiny_model(inner_loss="distance")(*tiny_inputs(), labels=labels).loss_dict
    for layer in ("", "_0", "_1"):
        assert distance[f"loss_inner_share{layer}"] == step[f"loss_inner{layer}"] > 0
        assert 0 < distance[f"loss_inner{layer}"] < step[f"loss_inner{layer}"]
    assert "loss_inner_share" not in step
    changed = [name for name in step if step[name] != distance[name]]
    assert all(name.startswith("loss_inner") for name in changed)


def test_distance_is_part_of_the_loss():
    labels = tiny_labels((18, 16), seed=5)
    outputs = tiny_model(inner_loss="distance")(*tiny_inputs(), labels=labels)
    without = tiny_model(inner_loss="distance", inner_loss_coefficient=0.0)(*tiny_inputs(), labels=labels)
    summed = sum(outputs.loss_dict[f"loss_inner{layer}"] for layer in ("", "_0", "_1"))
    assert float(outputs.loss - without.loss) == pytest.approx(2 * float(summed), rel=1e-4)


@torch.no_grad()
def test_a_corrected_model_is_optimized_for_inference_and_loaded(tmp_path):
    model = tiny_model(**CORRECTED)
    expected = model(*tiny_inputs())
    fast = copy.deepcopy(model).optimize_for_inference()
    fast.save_pretrained(tmp_path)
    for each in (fast, type(model).from_pretrained(tmp_path)):
        found = each(*tiny_inputs())
        for name in ("logits", "pred_boxes", "pred_points"):
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"point_start": "center"}, 'needs `point_update="exact"`'),
        ({"point_start": "middle"}, "corner"),
        ({"point_update": "none"}, "exact"),
        ({"head_points": "next"}, "current"),
        ({"inner_loss": "hinge"}, "distance"),
    ],
)
def test_rules_that_cannot_work_are_refused(fields, message):
    with pytest.raises(Exception, match=message) as caught:
        SapDetrConfig(**fields)
    assert isinstance(caught.value, ValueError) or type(caught.value).__name__.startswith("StrictDataclass")
