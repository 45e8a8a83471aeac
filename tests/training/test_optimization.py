"""Learning rates, parameter groups and frozen parts of the published recipe."""

import pytest
from tiny_training import TINY_MODEL

from sap_detr_cli.settings.train import TrainingSettings
from sap_detr_hf import SapDetrConfig, SapDetrForObjectDetection
from sap_detr_hf.training.optimization import (
    average_weights,
    build_optimizer,
    build_scheduler,
    freeze_parameters,
    learning_rate_factor,
)


def settings(**changes):
    return TrainingSettings(variant="r50", data="none", **changes)


def tiny_model(**changes):
    return SapDetrForObjectDetection(SapDetrConfig(num_labels=3, **{**TINY_MODEL, **changes}))


def test_published_schedule():
    def factor(step):
        return learning_rate_factor(step, settings(), steps_per_epoch=7393, total_steps=50 * 7393)

    assert factor(0) == 1e-3
    assert factor(500) == pytest.approx(0.5005)
    assert factor(1000) == factor(40 * 7393 - 1) == 1
    assert factor(40 * 7393) == factor(50 * 7393 - 1) == pytest.approx(0.1)


def test_cosine_and_constant_schedules():
    changes = {"warmup_steps": 10, "warmup_start": 0.0, "drop_factor": 0.01}
    cosine = [
        learning_rate_factor(step, settings(schedule="cosine", **changes), steps_per_epoch=11, total_steps=110)
        for step in range(111)
    ]
    assert cosine[0] == 0
    assert cosine[10] == 1
    assert cosine[60] == pytest.approx((1 + 0.01) / 2)
    assert cosine[110] == pytest.approx(0.01)
    assert cosine[10:] == sorted(cosine[10:], reverse=True)
    constant = settings(schedule="constant", **changes)
    assert learning_rate_factor(10**6, constant, steps_per_epoch=11, total_steps=110) == 1


def test_every_learning_parameter_is_in_one_group_with_its_rate():
    model = tiny_model(frozen_backbone_stages=1)
    optimizer = build_optimizer(model, settings())
    others, backbone = optimizer.param_groups
    assert [group["lr"] for group in optimizer.param_groups] == [1e-4, 1e-5]
    assert {group["weight_decay"] for group in optimizer.param_groups} == {1e-4}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert all(names[id(p)].startswith("model.backbone.") for p in backbone["params"])
    assert not any(names[id(p)].startswith("model.backbone.") for p in others["params"])
    learning = [p for p in model.parameters() if p.requires_grad]
    assert len(learning) == len(backbone["params"]) + len(others["params"]) < len(names)


def test_scheduler_scales_both_rates():
    optimizer = build_optimizer(tiny_model(), settings())
    scheduler = build_scheduler(optimizer, settings(warmup_steps=2), steps_per_epoch=1, total_steps=9)
    assert scheduler.get_last_lr() == pytest.approx([1e-7, 1e-8])
    for _ in range(2):
        optimizer.step()
        scheduler.step()
    assert scheduler.get_last_lr() == pytest.approx([1e-4, 1e-5])


def test_freezing_by_prefix():
    model = tiny_model()
    before = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    freeze_parameters(model, ["model.backbone", "model.encoder"])
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen - before == {
        n for n, _ in model.named_parameters() if n.startswith(("model.backbone.", "model.encoder."))
    }
    with pytest.raises(ValueError, match=r"`model.enc`.*model.encoder"):
        freeze_parameters(model, ["model.enc"])
    freeze_parameters(model, ["model", "class_heads", "objectness_head"])
    with pytest.raises(ValueError, match="no parameter to train"):
        build_optimizer(model, settings(freeze=["model", "class_heads", "objectness_head"]))


def test_average_forgets_the_first_weights_and_then_moves_slowly():
    model = tiny_model()
    average = average_weights(model, decay=0.5)
    weight = model.objectness_head.weight
    start = weight.detach().clone()
    average.update_parameters(model)
    weight.data += 1
    average.update_parameters(model)  # second update: decay (1 + 1) / (10 + 1)
    found = average.module.objectness_head.weight
    assert (found - start).mean().item() == pytest.approx(1 - 2 / 11, abs=1e-5)
    for _ in range(20):
        average.update_parameters(model)
    before = found.clone()
    weight.data += 1
    average.update_parameters(model)  # now the full decay
    assert (found - before).mean().item() == pytest.approx(0.5, abs=1e-4)
    assert not any(parameter.requires_grad for parameter in average.parameters())
    assert not average.module.training
