"""Matching and loss: bad labels, empty images, the normalizer over processes, and independence of batching."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_model import tiny_config, tiny_inputs, tiny_labels, tiny_model

from sap_detr_hf.model.configuration_sap_detr import SapDetrConfig
from sap_detr_hf.model.denoising import denoising_loss, denoising_queries
from sap_detr_hf.model.loss import (
    LayerPredictions,
    corners_from_boxes,
    iou_and_giou,
    match_queries,
    matching_cost,
    pad_targets,
    points_outside,
    sap_detr_loss,
    weighted_sum,
)


def random_predictions(layers=2, images=2, queries=20, classes=6, seed=0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (layers, images, queries)
    return {
        "logits": torch.randn(*shape, classes, generator=generator),
        "pred_boxes": torch.rand(*shape, 4, generator=generator) * 0.4 + 0.1,
        "pred_points": torch.rand(*shape, 2, generator=generator),
        "pred_objectness": torch.randn(*shape, 1, generator=generator),
    }


# --- Geometry --------------------------------------------------------------------------------------------------------


def test_iou_of_known_boxes():
    first = torch.tensor([[0.0, 0.0, 0.2, 0.2], [0.0, 0.0, 0.2, 0.2], [0.1, 0.1, 0.3, 0.3]])
    second = torch.tensor([[0.0, 0.0, 0.2, 0.2], [0.2, 0.2, 0.4, 0.4], [0.2, 0.1, 0.4, 0.3]])
    iou, giou = iou_and_giou(first, second)
    assert torch.allclose(iou, torch.tensor([1.0, 0.0, 1 / 3]), atol=1e-4)
    assert torch.allclose(giou, torch.tensor([1.0, -0.5, 1 / 3]), atol=1e-4)


def test_a_point_on_the_edge_is_inside():
    box = torch.tensor([0.25, 0.25, 0.5, 0.75])
    points = torch.tensor([[0.25, 0.25], [0.5, 0.75], [0.3, 0.5], [0.24, 0.5], [0.3, 0.76]])
    assert points_outside(points, box).tolist() == [False, False, False, True, True]


# --- Matching --------------------------------------------------------------------------------------------------------


def test_matching_is_optimal():
    """Against all assignments of 3 boxes to 6 queries, tried one by one."""
    config = tiny_config()
    named = random_predictions(layers=1, images=1, queries=6)
    predictions = LayerPredictions(
        named["logits"], named["pred_boxes"], named["pred_points"], named["pred_objectness"][..., 0]
    )
    labels = tiny_labels(counts=(3,))
    targets = pad_targets(labels, 6, torch.device("cpu"))
    cost = matching_cost(predictions, targets, config)[0, 0]
    best = min(itertools.permutations(range(6), 3), key=lambda queries: sum(cost[q, t] for t, q in enumerate(queries)))
    queries, boxes = match_queries(predictions, targets, labels, config)[0][0]
    assert {int(t): int(q) for q, t in zip(queries, boxes, strict=True)} == dict(enumerate(best))


def test_batched_matching_equals_single():
    config = tiny_config()
    named = random_predictions(images=3)
    labels = tiny_labels(counts=(4, 0, 7))
    together, _ = sap_detr_loss(labels=labels, config=config, num_boxes=1.0, **named)
    alone = [
        sap_detr_loss(labels=[label], config=config, num_boxes=1.0, **{k: v[:, i : i + 1] for k, v in named.items()})[0]
        for i, label in enumerate(labels)
    ]
    assert float(together) == pytest.approx(float(sum(alone)), rel=1e-5)


def test_a_point_outside_the_box_is_matched_last():
    named = random_predictions(layers=1, images=1, queries=20)
    labels = [{"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.9, 0.9, 0.1, 0.1]])}]
    named["pred_points"][:] = 0.1
    named["pred_points"][0, 0, 7] = 0.9
    named["pred_boxes"][0, 0, 3] = labels[0]["boxes"][0]  # a perfect box, but from a point elsewhere
    predictions = LayerPredictions(
        named["logits"], named["pred_boxes"], named["pred_points"], named["pred_objectness"][..., 0]
    )
    targets = pad_targets(labels, 6, torch.device("cpu"))
    assert match_queries(predictions, targets, labels, tiny_config())[0][0][0].tolist() == [7]


# --- Empty, missing and bad labels -----------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [(0, 0), (0, 3)])
def test_images_without_boxes_have_a_finite_loss_and_all_gradients(counts):
    model = tiny_model().train()
    loss = model(*tiny_inputs(), labels=tiny_labels(counts=counts)).loss
    loss.backward()
    assert loss.isfinite()
    for head in (model.class_heads[0], model.class_heads[1], model.objectness_head):
        assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


BOX = torch.tensor([0.5, 0.5, 0.2, 0.2])


@pytest.mark.parametrize(
    ("classes", "boxes", "message"),
    [
        ([6], [BOX], r"Image 7 has the class label 6 but the model has the classes 0 to 5"),
        ([-1], [BOX], r"Image 7 has the class label -1"),
        ([0, 1], [BOX, BOX * torch.tensor([1, 1, 0, 1])], r"Image 7 has the box .* above 0"),
        ([0], [BOX * float("nan")], r"Image 7 has the box \[nan.* must be finite"),
        ([0], [BOX * torch.tensor([1, 1, float("inf"), 1])], r"Image 7 has the box"),
        ([0, 1], [BOX], r"Image 7 has 2 class labels but boxes of the shape \(1, 4\)"),
        ([0], [BOX[:3]], r"Image 7 has 1 class labels but boxes of the shape \(1, 3\)"),
        ([0] * 21, [BOX] * 21, r"Image 7 has 21 boxes but the model has only 20 queries"),
    ],
)
def test_bad_labels_name_the_image(classes, boxes, message):
    model = tiny_model()
    good = tiny_labels(counts=(2,))[0]
    bad = {"image_id": torch.tensor([7]), "class_labels": torch.tensor(classes), "boxes": torch.stack(boxes)}
    with pytest.raises(ValueError, match=message):
        model(*tiny_inputs(), labels=[good, bad])
    assert model(*tiny_inputs(), labels=[good, good]).loss.isfinite()  # nothing is left behind


def test_a_diverged_model_gives_a_non_finite_loss_and_no_crash():
    named = random_predictions()
    named["logits"][0, 0, 0, 0] = float("nan")
    named["pred_boxes"][1, 1, 2] = float("inf")
    loss, _ = sap_detr_loss(labels=tiny_labels(), config=tiny_config(), **named)
    assert not loss.isfinite()


# --- Normalizer ------------------------------------------------------------------------------------------------------


def test_given_number_of_boxes_divides_everything():
    named = random_predictions()
    labels = tiny_labels(counts=(3, 1))
    default, parts = sap_detr_loss(labels=labels, config=tiny_config(), **named)
    given, halves = sap_detr_loss(labels=labels, config=tiny_config(), num_boxes=torch.tensor(8.0), **named)
    assert float(given) == pytest.approx(float(default) / 2, rel=1e-6)
    for name in parts:
        if name != "class_error":
            assert float(halves[name]) == pytest.approx(float(parts[name]) / 2, rel=1e-6)


def test_loss_without_one_hot_equals_the_textbook_focal_loss():
    named = random_predictions(layers=1, images=1)
    labels = tiny_labels(counts=(4,))
    config = tiny_config()
    predictions = LayerPredictions(
        named["logits"], named["pred_boxes"], named["pred_points"], named["pred_objectness"][..., 0]
    )
    queries, boxes = match_queries(predictions, pad_targets(labels, 6, torch.device("cpu")), labels, config)[0][0]
    target = torch.zeros(20, 6)
    target[queries, labels[0]["class_labels"][boxes]] = 1
    quality = torch.zeros(20)
    quality[queries] = iou_and_giou(
        corners_from_boxes(named["pred_boxes"][0, 0, queries]), corners_from_boxes(labels[0]["boxes"][boxes])
    )[0]

    def focal(logits, target):
        p = logits.sigmoid()
        cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
        p_t = p * target + (1 - p) * (1 - target)
        return ((0.25 * target + 0.75 * (1 - target)) * (1 - p_t) ** 2 * cross_entropy).sum() / 4

    _, parts = sap_detr_loss(labels=labels, config=config, **named)
    assert float(parts["loss_ce"]) == pytest.approx(float(focal(named["logits"][0, 0], target)), rel=1e-5)
    expected = float(focal(named["pred_objectness"][0, 0, :, 0], quality))
    assert float(parts["loss_ce_obj"]) == pytest.approx(expected, rel=1e-5)


def test_varifocal_class_loss_is_the_textbook_formula():
    """In matching and denoising; the IoU and the weights carry no gradient."""
    named = {name: value.requires_grad_() for name, value in random_predictions(layers=1, images=1).items()}
    labels = tiny_labels(counts=(4,))
    config = tiny_config(class_loss="varifocal", focal_alpha=0.3, focal_gamma=1.5)
    predictions = LayerPredictions(
        named["logits"], named["pred_boxes"], named["pred_points"], named["pred_objectness"][..., 0]
    )
    queries, boxes = match_queries(predictions, pad_targets(labels, 6, torch.device("cpu")), labels, config)[0][0]
    corners = corners_from_boxes(named["pred_boxes"][0, 0, queries])
    quality = torch.full((20, 6), -1.0)  # where no object is
    quality[queries, labels[0]["class_labels"][boxes]] = iou_and_giou(
        corners, corners_from_boxes(labels[0]["boxes"][boxes])
    )[0].detach()

    def varifocal(logits, quality):
        weight = torch.where(quality >= 0, quality, 0.7 * logits.sigmoid().detach() ** 1.5)
        quality = quality.clamp(min=0)
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, quality, weight=weight, reduction="sum") / 4

    only = {f"{name}_loss_coefficient": 0.0 for name in ("objectness", "bbox", "giou", "inner")}
    config.update(only)
    loss, parts = sap_detr_loss(labels=labels, config=config, **named)
    expected = varifocal(named["logits"][0, 0], quality)
    assert (quality > 0).sum() == 3, "one matched box does not overlap: it has no class loss"
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(parts["loss_ce"], expected.detach())
    found, wanted = (torch.autograd.grad(value, named["logits"], retain_graph=True)[0] for value in (loss, expected))
    torch.testing.assert_close(found, wanted)
    assert torch.autograd.grad(loss, named["pred_boxes"])[0].abs().max() == 0

    embedding = torch.nn.Embedding(6, 8)
    config.denoising_pairs = 10
    noisy = denoising_queries(labels, embedding, config)
    loss, _ = denoising_loss(named, noisy, 4.0, config)
    iou, _ = iou_and_giou(corners_from_boxes(named["pred_boxes"][0, 0, :10]), noisy.target_corners[0])
    quality = torch.full((20, 6), -1.0)
    quality[torch.arange(10), noisy.target_classes[0]] = iou.detach()
    expected = sum(noisy.weights[0, i] * varifocal(named["logits"][0, 0, i], quality[i]) for i in range(20))
    torch.testing.assert_close(loss, expected)


TWO_PROCESSES = """
import sys, torch
from accelerate import Accelerator
from torch.nn.parallel import DistributedDataParallel
from sap_detr_hf.distributed import end_processes
from tiny_model import tiny_inputs, tiny_labels, tiny_model
accelerator = Accelerator(cpu=True)
rank = accelerator.process_index
pixels, mask = tiny_inputs(sizes=((64, 96), (64, 96)))
labels = tiny_labels(counts=(5, 0))  # the second process has no box at all
model = DistributedDataParallel(tiny_model().train())
loss = model(pixels[rank : rank + 1], mask[rank : rank + 1], labels=labels[rank : rank + 1]).loss
loss.backward()
total = accelerator.reduce(loss.detach(), reduction="mean")
if accelerator.is_main_process:
    torch.save({"loss": total, "grads": [p.grad for p in model.parameters() if p.grad is not None]}, sys.argv[1])
del model, loss
end_processes()
"""


def test_two_processes_equal_one_on_the_joined_batch(tmp_path):
    """Real Gloo processes, one of them without any box: same loss, same gradients."""
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    tests = str(Path(__file__).parents[1])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    subprocess.run(
        [*command, str(tmp_path / "out.pt")],
        check=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([tests, *sys.path]), "ACCELERATE_USE_CPU": "true"},
    )
    two = torch.load(tmp_path / "out.pt", weights_only=True)
    model = tiny_model().train()
    loss = model(*tiny_inputs(sizes=((64, 96), (64, 96))), labels=tiny_labels(counts=(5, 0))).loss
    loss.backward()
    assert float(two["loss"]) == pytest.approx(float(loss.detach()), rel=1e-5)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(gradients) == len(two["grads"])
    largest = max(float(g.abs().max()) for g in gradients)
    for ours, theirs in zip(gradients, two["grads"], strict=True):
        assert (ours - theirs).norm() <= 1e-3 * ours.norm() + 1e-4 * largest


def test_trains_inside_transformers_trainer(tmp_path):
    from transformers import Trainer, TrainingArguments

    pixels, mask = tiny_inputs(sizes=((64, 96), (64, 96)))
    labels = tiny_labels()
    rows = [{"pixel_values": pixels[i % 2], "pixel_mask": mask[i % 2], "labels": labels[i % 2]} for i in range(8)]

    def collate(batch):
        tensors = {key: torch.stack([row[key] for row in batch]) for key in ("pixel_values", "pixel_mask")}
        return {**tensors, "labels": [row["labels"] for row in batch]}

    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=2,
        num_train_epochs=6,
        learning_rate=1e-3,
        logging_steps=4,
        report_to=[],
        remove_unused_columns=False,
        eval_do_concat_batches=False,
        use_cpu=True,
        save_strategy="no",
    )
    seen = []
    trainer = Trainer(
        model=tiny_model(),
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=collate,
        compute_metrics=lambda evaluation: (
            seen.append(evaluation.predictions) or {"count": len(evaluation.predictions)}
        ),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    assert trainer.evaluate()["eval_count"] == 1
    logits, boxes = seen[0][0][:2]
    assert logits.shape == (8, 20, 6)
    assert boxes.shape == (8, 20, 4)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_labels_for_another_number_of_images_are_refused(count):
    with pytest.raises(ValueError, match=f"`labels` has {count} entries for 2 images"):
        tiny_model()(*tiny_inputs(), labels=tiny_labels(counts=[1] * count))


def test_a_loss_without_a_coefficient_is_refused():
    """It would be reported, and nothing would learn from it."""
    names = ("loss_ce", "loss_bbox", "loss_giou", "loss_ce_obj", "loss_inner", "class_error")
    losses = {name: torch.ones(2) for name in names}
    assert float(weighted_sum(losses, SapDetrConfig())) == 2 * (1 + 5 + 2 + 1 + 2)
    with pytest.raises(ValueError, match="loss_unknown: a loss without a coefficient"):
        weighted_sum({**losses, "loss_unknown": torch.ones(2)}, SapDetrConfig())
