"""Denoising queries: fixed slots, true boxes with noise, apart from all other queries, and only in training."""

import copy

import pytest
import torch
import torchvision
from tiny_model import tiny_config, tiny_inputs, tiny_labels, tiny_model
from torch import nn

from sap_detr_hf import SapDetrConfig, SapDetrForObjectDetection
from sap_detr_hf.model.denoising import denoising_losses, denoising_queries, draw_noise, noisy_sides
from sap_detr_hf.model.loss import layer_predictions, pad_targets, points_outside
from sap_detr_hf.model.salient_points import box_corners, cell_corners
from sap_detr_hf.training.model import compile_transformer

PAIRS = 7
OUTPUTS = ("logits", "pred_boxes", "pred_points", "pred_objectness", "intermediate_hidden_states")
CORRECTED = {"point_start": "center", "point_update": "exact", "head_points": "current", "inner_loss": "distance"}


def noisy_model(**fields):
    return tiny_model(denoising_pairs=PAIRS, **fields).train()


def made(counts=(3, 1), pairs=PAIRS, labels=None, seed=0, **fields):
    """Labels, their padded form and the denoising queries of one batch."""
    labels = labels or tiny_labels(counts)
    torch.manual_seed(seed)
    embedding = nn.Embedding(6, 32)
    embedding.weight.data = torch.arange(6.0)[:, None].expand(6, 32).clone()  # the class can be read off
    noise = draw_noise(len(labels), pairs, torch.device("cpu"))
    targets = pad_targets(labels, 6, torch.device("cpu"))
    return targets, denoising_queries(labels, embedding, tiny_config(**fields), noise)


# --- The queries -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", [1, 2, 7, 50])
def test_weights_add_up_to_the_boxes_whatever_their_number(pairs):
    counts = [0, 1, 3, 7, 12]
    _, queries = made(counts, pairs)
    positive, negative = queries.weights.chunk(2, dim=1)
    torch.testing.assert_close(positive.sum(1), torch.tensor(counts, dtype=torch.float32))
    assert ((negative == positive) | (negative == 0)).all()
    for count, weights in zip(counts[1:], positive[1:], strict=True):
        assert int((weights > 0).sum()) == (pairs // count * count or pairs)  # whole rounds, or what fits


def test_every_box_is_used_equally_often_and_too_many_are_drawn():
    targets, queries = made((3, 12))
    seen = [int((queries.target_corners[0] == box).all(-1)[queries.weights[0, :PAIRS] > 0].sum()) for box in
            targets.corners[0, :3]]  # fmt: skip
    assert seen == [2, 2, 2]
    assert len({tuple(box.tolist()) for box in queries.target_corners[1]}) == PAIRS
    starts = {float(made((3, 12), seed=seed)[1].target_corners[1, 0, 0]) for seed in range(20)}
    assert len(starts) > 5


@pytest.mark.parametrize("point_start", ["corner", "center"])
def test_without_noise_a_positive_is_its_object(point_start):
    quiet = {"denoising_label_noise": 0.0, "denoising_point_noise": 0.0, "denoising_box_noise": 0.0}
    targets, queries = made((3, 1), point_start=point_start, point_update="exact", **quiet)
    corners = queries.target_corners
    points, sides = queries.points[:, :PAIRS], queries.sides[:, :PAIRS]
    torch.testing.assert_close(points, (corners[..., :2] + corners[..., 2:]) / 2, rtol=0, atol=1e-6)
    torch.testing.assert_close(box_corners(points, sides), corners, rtol=0, atol=1e-6)
    assert torch.equal(queries.content[:, :, 0], queries.target_classes.repeat(1, 2).float())
    cell = torch.tensor([1 / 5, 1 / 4])
    corners = cell_corners(queries.points, tiny_config(point_start=point_start, point_update="exact"))
    start = corners + (cell / 2 if point_start == "center" else 0)
    torch.testing.assert_close(start, queries.points, rtol=0, atol=1e-6)
    assert targets.corners.shape == (2, 3, 4)


@pytest.mark.parametrize("box_noise", [0.4, 1.0])
def test_points_of_positives_lie_inside_and_of_outside_negatives_in_no_box(box_noise):
    targets, queries = made((5, 1, 0, 3), 60, denoising_outside_share=1.0, denoising_box_noise=box_noise)
    points, negative = queries.points.chunk(2, dim=1)
    inside = queries.target_corners + torch.tensor([-1e-6, -1e-6, 1e-6, 1e-6])
    assert not points_outside(points, inside).any()
    weighted = queries.weights[:, 60:] > 0
    for image, count in enumerate(targets.counts):
        assert weighted[image].any() == (count > 0)
        in_box = ~points_outside(negative[image, :, None], targets.corners[image, None, :count])
        assert not in_box.any(-1)[weighted[image]].any()
    assert ((negative >= 0) & (negative <= 1)).all(-1)[weighted].all()
    assert not weighted[0].all()  # some fell into another box or out of the image
    # Behind one side, by at most half of the box
    size = queries.target_corners[..., 2:] - queries.target_corners[..., :2]
    away = ((negative - (queries.target_corners[..., :2] + queries.target_corners[..., 2:]) / 2).abs() / size).amax(-1)
    assert away.min() >= 0.5 - 1e-4
    assert away.max() <= 1 + 1e-4
    assert 0.7 < away.mean() < 0.8


def test_a_share_of_the_negatives_lies_outside():
    _, queries = made((1,), 400, denoising_outside_share=0.3)
    outside = points_outside(queries.points[:, 400:], queries.target_corners)
    assert 0.25 < outside.float().mean() < 0.35


def test_an_image_has_the_same_queries_in_any_batch():
    """The fuller image pads the other's boxes with some that are not there, and no point may count as inside those."""
    labels = tiny_labels((1, 9))
    noise = draw_noise(2, 60, torch.device("cpu"))
    embedding, config = nn.Embedding(6, 32), tiny_config(denoising_outside_share=1.0)
    together = denoising_queries(labels, embedding, config, noise)
    alone = denoising_queries(labels[:1], embedding, config, noise[:1])
    for name in ("content", "points", "sides", "weights", "target_corners"):
        assert torch.equal(getattr(together, name)[:1], getattr(alone, name)), name


@pytest.mark.parametrize("outside", [0.0, 1.0])
def test_points_fill_the_box_and_negatives_leave_it_by_every_side(outside):
    _, queries = made((1,), 400, denoising_outside_share=outside)
    low, high = queries.target_corners.chunk(2, dim=-1)
    positive, negative = ((points - low) / (high - low) for points in queries.points.chunk(2, dim=1))
    assert (positive.amin((0, 1)) < 0.03).all()
    assert (positive.amax((0, 1)) > 0.97).all()
    left = torch.stack([(negative < -1e-4).any(1), (negative > 1.0001).any(1)])
    assert left.all() if outside else not left.any()


def test_corners_move_by_the_noise_and_further_for_negatives():
    label = {"class_labels": torch.tensor([2]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}
    _, queries = made(labels=[label], pairs=200, denoising_box_noise=0.4, denoising_outside_share=0.0,
                      denoising_point_noise=0.0)  # fmt: skip
    positive, negative = (box_corners(queries.points, queries.sides) - torch.tensor([0.4, 0.4, 0.6, 0.6])).chunk(2, 1)
    assert positive.abs().max() <= 0.04 + 1e-6
    assert 0.019 < positive.abs().mean() < 0.021
    assert positive.mean().abs() < 0.003
    assert negative.abs().min() >= 0.04 - 1e-6
    assert negative.abs().max() <= 0.08 + 1e-6
    wrong = (queries.content[0, :, 0] != 2).float().mean()
    assert 0.14 < wrong < 0.28  # a quarter is drawn from all six classes
    assert set(queries.content[0, :, 0].tolist()) == set(range(6))
    of_positives, of_negatives = queries.content[0, :, 0].chunk(2)
    both = (of_positives != 2) & (of_negatives != 2)
    assert 0.01 < both.float().mean() < 0.1  # each half draws its own
    assert (of_positives != of_negatives)[both].any()


def test_sides_are_positive_and_finite_for_extreme_boxes():
    boxes = torch.tensor([[0.5, 0.5, 1 / 1333, 1 / 800], [0.5, 0.5, 1.0, 1.0], [0.001, 0.999, 0.002, 0.002]])
    _, queries = made(labels=[{"class_labels": torch.tensor([0, 1, 2]), "boxes": boxes}], pairs=60,
                      denoising_box_noise=2.0)  # fmt: skip
    assert queries.sides.isfinite().all()
    assert queries.sides.min() >= 1e-3
    assert queries.sides.max() <= 1 - 1e-3
    assert queries.points.isfinite().all()


def test_sides_by_hand():
    """Corners stay in the image, a point beyond a corner gets its distance, and no side is nearly 0."""
    low, high = torch.tensor([0.5, 0.4]), torch.tensor([0.7, 0.8])
    corners = torch.cat([low, high]).expand(1, 1, 4)
    point = torch.tensor([0.55, 0.5])
    halves = torch.tensor([False, True])[:, None, None]
    sign = torch.tensor([1.0, 0.0, 0.0, 1.0])  # left and bottom sides move right and down, the others left and up
    parts = {"sign": sign.expand(1, 2, 1, 4), "magnitude": torch.full((1, 2, 1, 4), 0.9)}

    def sides(noise, outside=False):
        points = point.expand(1, 2, 1, 2)
        return noisy_sides(corners, points, halves, halves[None] & outside, parts, noise)[0, :, 0]

    positive, negative = sides(1.0)
    # x1 = 0.5 + 0.9 * 0.1 passes the point; y1 = 0.4 - 0.9 * 0.2, x2 = 0.7 - 0.9 * 0.1, y2 = 0.8 + 0.9 * 0.2
    torch.testing.assert_close(positive, torch.tensor([0.02 * 0.2 + 1e-3, 0.28, 0.06, 0.48]))
    # Wrong sides move by 1.9 halves: x1 = 0.69, y1 = 0.02, x2 = 0.51, y2 = 1.18, which the image ends
    torch.testing.assert_close(negative, torch.tensor([0.14, 0.48, 0.04, 0.5]))
    # Of a negative whose point is what is wrong, they move by 0.9 halves
    torch.testing.assert_close(sides(1.0, outside=True)[1], torch.tensor([0.04, 0.28, 0.06, 0.48]))
    positive, _ = sides(3.0)  # y1 would be -0.14, y2 1.34
    torch.testing.assert_close(positive[[1, 3]], torch.tensor([0.5, 0.5]))


def test_noise_for_other_images_is_refused():
    noise = draw_noise(1, PAIRS, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"for \(1, 2\) images and halves, not for \(2, 2\)"):
        denoising_queries(tiny_labels((3, 1)), nn.Embedding(6, 32), tiny_config(), noise)


def test_queries_see_their_own_round_only():
    _, queries = made((3, 0))  # two rounds of three boxes, one slot unused
    visible = queries.visible[:, 0]
    rounds = torch.tensor([0, 0, 0, 1, 1, 1, 9]).repeat(2)
    expected = (rounds[:, None] == rounds) & (rounds < 9)
    expected |= torch.eye(14, dtype=torch.bool)
    assert torch.equal(visible[0], expected)
    assert torch.equal(visible[1], torch.eye(14, dtype=torch.bool))


@pytest.mark.parametrize("counts", [(0, 0), (1, 1), (9, 30)])
def test_shapes_do_not_depend_on_the_boxes(counts):
    _, queries = made(counts)
    shapes = {name: tuple(value.shape) for name, value in vars(queries).items() if value is not None}
    assert shapes == {
        "content": (2, 14, 32), "points": (2, 14, 2), "sides": (2, 14, 4), "visible": (2, 1, 14, 14),
        "weights": (2, 14), "target_classes": (2, 7), "target_corners": (2, 7, 4),
    }  # fmt: skip


# --- In the model ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"num_groups": 3}, CORRECTED])
def test_matched_queries_do_not_notice(fields):
    noisy = noisy_model(**fields)
    plain = SapDetrForObjectDetection(tiny_config(**fields)).train()
    plain.load_state_dict({name: value for name, value in noisy.state_dict().items() if "denoising" not in name})
    got, expected = (model(*tiny_inputs(), labels=tiny_labels()) for model in (noisy, plain))
    for name in OUTPUTS:
        torch.testing.assert_close(got[name], expected[name], rtol=0, atol=1e-5)
    for name, value in expected.loss_dict.items():
        torch.testing.assert_close(got.loss_dict[name], value, rtol=1e-5, atol=1e-5)
    extra = got.loss_dict.keys() - expected.loss_dict.keys()
    kinds = ("loss_ce", "loss_ce_obj", "loss_bbox", "loss_giou", "loss_inner")
    assert extra == {f"{kind}_dn{layer}" for kind in kinds for layer in ("", "_0", "_1")}
    weights = {"loss_ce": 1, "loss_ce_obj": 1, "loss_bbox": 5, "loss_giou": 2, "loss_inner": 2}
    added = sum(weights[kind] * got.loss_dict[f"{kind}_dn{layer}"] for kind in kinds for layer in ("", "_0", "_1"))
    torch.testing.assert_close(got.loss, expected.loss + added, rtol=1e-5, atol=1e-5)
    half = copy.deepcopy(noisy)
    half.config.denoising_loss_coefficient = 0.0
    torch.testing.assert_close(half(*tiny_inputs(), labels=tiny_labels()).loss, expected.loss, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fields", [{}, CORRECTED, {"num_groups": 2, **CORRECTED}])
def test_the_decoder_starts_from_the_noisy_points_and_sides(fields):
    model, seen = noisy_model(**fields), []
    model.model.decoder.layers[0].gaussian.register_forward_hook(lambda module, given, output: seen.extend(given[1:3]))
    noise = draw_noise(2, PAIRS, torch.device("cpu"))
    queries = denoising_queries(tiny_labels(), model.denoising_class_embedding, model.config, noise)
    model.model(*tiny_inputs(), denoising=queries)
    for entered, made_of_noise in zip(seen, (queries.points, queries.sides), strict=True):
        torch.testing.assert_close(entered[:, -2 * PAIRS :], made_of_noise, rtol=0, atol=1e-6)


def test_groups_do_not_divide_the_denoising_loss():
    grouped = noisy_model(num_groups=3)
    plain = SapDetrForObjectDetection(tiny_config(denoising_pairs=PAIRS)).train()
    plain.load_state_dict({name: value for name, value in grouped.state_dict().items() if "query_groups" not in name})
    noise = draw_noise(2, PAIRS, torch.device("cpu"))
    got, expected = (
        model(*tiny_inputs(), labels=tiny_labels(), denoising_noise=noise).loss_dict for model in (grouped, plain)
    )
    names = [name for name in expected if "_dn" in name]
    assert len(names) == 15
    for name in names:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-5)


def test_objectness_teaches_the_boxes_as_that_of_matched_queries_does():
    _, queries = made((3, 1))
    boxes = torch.rand(1, 2, 2 * PAIRS, 4).mul(0.5).add(0.2).requires_grad_()
    logits, points, objectness = (torch.randn(1, 2, 2 * PAIRS, width) for width in (6, 2, 1))
    losses = denoising_losses(layer_predictions(logits, boxes, points, objectness), queries, 4.0, tiny_config())
    losses["loss_ce_obj"].sum().backward()
    assert boxes.grad[:, :, :PAIRS].abs().max() > 0


def test_only_training_with_labels_draws_noise():
    model = noisy_model()
    torch.manual_seed(0)
    model(*tiny_inputs())
    model.eval()(*tiny_inputs(), labels=tiny_labels())
    assert torch.equal(torch.get_rng_state(), torch.manual_seed(0).get_state())
    plain = SapDetrForObjectDetection(tiny_config()).eval()
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if "denoising" not in name})
    got, expected = (each(*tiny_inputs(), labels=tiny_labels()) for each in (model, plain))
    assert torch.equal(got.loss, expected.loss)
    assert got.loss_dict.keys() == expected.loss_dict.keys()


def test_a_round_does_not_see_another():
    """A changed sign of the first round's noise changes no other query."""
    model = noisy_model()
    noise = draw_noise(1, PAIRS, torch.device("cpu"))
    changed = noise.clone()
    changed[:, :, :3] = torch.rand_like(changed[:, :, :3])
    changed[:, :, :, -1], changed[:, :, :, 0] = noise[:, :, :, -1], noise[:, :, :, 0]
    seen = []
    model.model.decoder.layers[-1].register_forward_hook(lambda module, arguments, output: seen.append(output))
    pixels, mask = tiny_inputs(((96, 128),))
    for each in (noise, changed):
        model(pixels, mask, labels=tiny_labels((3,)), denoising_noise=each)
    differs = (seen[0] - seen[1]).abs().amax(-1)[0] > 1e-6
    first = torch.tensor([True] * 3 + [False] * 4).repeat(2)
    assert torch.equal(differs[20:], first)
    assert not differs[:20].any()


def test_noise_comes_from_the_generator_that_checkpoints_save():
    model = noisy_model()
    torch.manual_seed(5)
    first, state = model(*tiny_inputs(), labels=tiny_labels()).loss, torch.get_rng_state()
    second = model(*tiny_inputs(), labels=tiny_labels()).loss
    assert first != second
    torch.set_rng_state(state)
    assert torch.equal(model(*tiny_inputs(), labels=tiny_labels()).loss, second)


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("fields", [{}, {"num_groups": 2, **CORRECTED}])
def test_a_batch_equals_its_images_alone(fields):
    """As processes and accumulated batches are: the same noise, losses divided by the boxes of all."""
    joined, apart = noisy_model(**fields), noisy_model(**fields)
    pixels, mask = tiny_inputs(((96, 128), (96, 128)))
    labels, noise = tiny_labels((3, 1)), draw_noise(2, PAIRS, torch.device("cpu"))
    outputs = joined(pixels, mask, labels=labels, num_boxes=4.0, denoising_noise=noise)
    outputs.loss.backward()
    total = 0
    for i in range(2):
        part = slice(i, i + 1)
        alone = apart(pixels[part], mask[part], labels=labels[part], num_boxes=4.0, denoising_noise=noise[part])
        alone.loss.backward()
        total = total + alone.loss.detach()
    torch.testing.assert_close(total, outputs.loss.detach(), rtol=1e-5, atol=1e-5)
    found = gradients(apart)
    for name, gradient in gradients(joined).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("counts", [(0, 0), (0, 2), (19, 20)])
def test_every_parameter_gets_a_gradient(counts):
    model = noisy_model(num_groups=2)
    loss = model(*tiny_inputs(), labels=tiny_labels(counts)).loss
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert (model.denoising_class_embedding.weight.grad.abs().max() == 0) == (sum(counts) == 0)


@pytest.mark.parametrize("inner_loss", ["step", "distance"])
def test_losses_are_those_computed_by_hand(inner_loss):
    """From the model's own predictions of one image."""
    model = noisy_model(auxiliary_loss=False, inner_loss=inner_loss)
    model.model.decoder.point_heads[-1].layers[-1].bias.data += 12  # some points leave their boxes
    model.class_heads[-1].layers[-1].bias.data += 4  # so that negatives cost something
    model.objectness_head.bias.data += 4
    pixels, mask = tiny_inputs(((96, 128),))
    labels, noise = tiny_labels((3,)), draw_noise(1, PAIRS, torch.device("cpu"))
    queries = denoising_queries(labels, model.denoising_class_embedding, model.config, noise)
    outputs = model.model(pixels, mask, denoising=queries)
    predictions = {name: value[-1, 0, 20:].detach() for name, value in model.predict(outputs, 2, queries).items()}
    got = model(pixels, mask, labels=labels, num_boxes=3.0, denoising_noise=noise).loss_dict
    ce, l1, giou, inner, objectness = 0.0, 0.0, 0.0, 0.0, 0.0
    for slot in range(2 * PAIRS):
        weight = float(queries.weights[0, slot])
        for k in range(6):
            p = predictions["logits"][slot, k].sigmoid()
            if slot < PAIRS and k == queries.target_classes[0, slot]:
                ce += weight * float(-0.25 * (1 - p) ** 2 * p.log())
            else:
                ce += weight * float(-0.75 * p**2 * (1 - p).log())
        p_object = predictions["pred_objectness"][slot, 0].sigmoid()
        if slot >= PAIRS:
            objectness += weight * float(-0.75 * p_object**2 * (1 - p_object).log())
        if slot < PAIRS:
            center, size = predictions["pred_boxes"][slot].split(2)
            corners = torch.cat([center - size / 2, center + size / 2])
            target = queries.target_corners[0, slot]
            l1 += weight * float((corners - target).abs().sum())
            giou += weight * (1 - float(torchvision.ops.generalized_box_iou(corners[None], target[None])))
            iou = float(torchvision.ops.box_iou(corners[None], target[None]))
            distance = 1 - (p_object * iou + (1 - p_object) * (1 - iou))
            entropy = -(iou * p_object.log() + (1 - iou) * (1 - p_object).log())
            objectness += weight * float((0.25 * iou + 0.75 * (1 - iou)) * distance**2 * entropy)
            point = predictions["pred_points"][slot]
            if inner_loss == "step":
                inner += weight * float(points_outside(point, target))
            else:
                beyond = sum(
                    float(max(target[i] - point[i], point[i] - target[i + 2], 0)) / float(target[i + 2] - target[i])
                    for i in range(2)
                )
                inner += weight * beyond / (1 + beyond)
    assert inner > 0
    assert float(got["loss_ce_dn"]) == pytest.approx(ce / 3, rel=1e-4)
    assert float(got["loss_bbox_dn"]) == pytest.approx(l1 / 3, rel=1e-4)
    assert float(got["loss_giou_dn"]) == pytest.approx(giou / 3, rel=1e-4)
    assert float(got["loss_ce_obj_dn"]) == pytest.approx(objectness / 3, rel=1e-4)
    assert float(got["loss_inner_dn"]) == pytest.approx(inner / 3, rel=1e-4)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_training_and_attention_kernels_give_the_same(implementation, reentrant):
    plain, model = noisy_model(num_groups=2), noisy_model(num_groups=2)
    model.set_attn_implementation({"": implementation})
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    noise = draw_noise(2, PAIRS, torch.device("cpu"))
    for each in (plain, model):
        each(*tiny_inputs(), labels=tiny_labels(), denoising_noise=noise).loss.backward()
    found = gradients(model)
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    model = noisy_model(num_groups=2, **CORRECTED)
    noise = draw_noise(2, PAIRS, torch.device("cpu"))
    expected = model(*tiny_inputs(), labels=tiny_labels(), denoising_noise=noise)
    with torch.autocast("cpu", dtype):
        got = model(*tiny_inputs(), labels=tiny_labels(), denoising_noise=noise)
    got.loss.backward()
    assert float(got.loss_dict["loss_bbox_dn"]) == pytest.approx(float(expected.loss_dict["loss_bbox_dn"]), rel=0.1)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_one_compiled_training_graph_serves_all_batches():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain = noisy_model(num_groups=2, encoder_layers=1, decoder_layers=1)
    compiled = copy.deepcopy(plain)
    compile_transformer(compiled, backend="aot_eager")
    for sizes, counts in ((((96, 128), (64, 96)), (3, 0)), (((80, 64), (64, 64)), (1, 9)), (((96, 96),) * 2, (0, 0))):
        noise = draw_noise(2, PAIRS, torch.device("cpu"))
        losses = [
            model(*tiny_inputs(sizes), labels=tiny_labels(counts), denoising_noise=noise).loss
            for model in (plain, compiled)
        ]
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 4  # encoder and decoder, twice each
    torch._dynamo.reset()


# --- Around it -------------------------------------------------------------------------------------------------------


def test_a_model_for_inference_has_nothing_of_it(tmp_path):
    noisy_model(num_groups=2).save_pretrained(tmp_path / "noisy")
    plain, loading = SapDetrForObjectDetection.from_pretrained(
        tmp_path / "noisy", denoising_pairs=0, num_groups=1, output_loading_info=True
    )
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    loaded = SapDetrForObjectDetection.from_pretrained(tmp_path / "noisy").eval()
    fast = copy.deepcopy(loaded).optimize_for_inference()
    names = tiny_model().state_dict().keys()
    assert plain.state_dict().keys() == names
    assert not any("denoising" in name or "group" in name for name in fast.state_dict())
    assert (fast.config.denoising_pairs, fast.config.num_groups) == (0, 1)
    with torch.no_grad():
        for each in (plain.eval(), fast):
            torch.testing.assert_close(
                each(*tiny_inputs()).pred_boxes, loaded(*tiny_inputs()).pred_boxes, rtol=0, atol=1e-5
            )


def test_too_few_labels_are_refused():
    with pytest.raises(ValueError, match="1 entries for 2 images"):
        noisy_model()(*tiny_inputs(), labels=tiny_labels((2,)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"denoising_pairs": -1}, "`denoising_pairs` = -1 must be 0 or more"),
        ({"denoising_box_noise": -0.1}, "must be 0 or more"),
        ({"denoising_point_noise": 1.5}, "must lie between 0 and 1"),
        ({"denoising_label_noise": 2}, "must lie between 0 and 1"),
    ],
)
def test_noise_that_cannot_work_is_refused(fields, message):
    with pytest.raises(Exception, match=message) as caught:
        SapDetrConfig(**fields)
    assert isinstance(caught.value, ValueError) or type(caught.value).__name__.startswith("StrictDataclass")
