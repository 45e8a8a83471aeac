"""What a run starts from: a variant with the data's classes, its frozen and unreached parts, the image size."""

import pytest
import torch
from accelerate import PartialState
from tiny_training import TINY_MODEL
from transformers import AutoModelForObjectDetection

from sap_detr_cli.settings.train import TrainingSettings
from sap_detr_hf import SapDetrImageProcessorPil
from sap_detr_hf.data.dataset import DetectionData
from sap_detr_hf.training.model import build_image_processor, build_model, freeze_unreached

CLASSES = DetectionData(None, {0: "cat", 1: "dog"}, [3, 8], {3: "cat", 8: "dog"}, "pets")
OTHER_CLASSES = DetectionData(None, {0: "cow", 1: "dog"}, [1, 2], {1: "cow", 2: "dog"}, "animals")


def settings(model_overrides=None, **changes):
    overrides = {**TINY_MODEL, **(model_overrides or {})}
    return TrainingSettings(variant="r50", data="none", model_overrides=overrides, **changes)


def learning(model):
    freeze_unreached(model)
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_classes_of_the_data_and_training_mode():
    model = build_model(settings(), CLASSES)
    assert model.config.id2label == {0: "cat", 1: "dog"}
    assert model.config.category_ids == [3, 8]
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(layer.gradient_checkpointing for layer in model.model.encoder.layers)


def test_gradient_checkpointing_is_switched_on():
    model = build_model(settings(gradient_checkpointing=True), CLASSES)
    layers = [*model.model.encoder.layers, *model.model.decoder.layers]
    assert all(layer.gradient_checkpointing for layer in layers)


def test_parameters_that_no_loss_reaches_do_not_learn():
    reached = learning(build_model(settings(), CLASSES))
    assert any(name.startswith("class_heads.0.") for name in reached)
    assert any("stages.3." in name for name in reached)
    without_auxiliary = learning(build_model(settings({"auxiliary_loss": False}), CLASSES))
    assert not any(name.startswith("class_heads.0.") for name in without_auxiliary)
    third_stage = {**TINY_MODEL["backbone_config"], "out_features": ["stage3"]}
    assert not any(
        "stages.3." in name for name in learning(build_model(settings({"backbone_config": third_stage}), CLASSES))
    )


def test_what_training_alone_reaches_learns():
    model = build_model(settings({"num_groups": 2, "group_content": True, "denoising_pairs": 3}), CLASSES)
    before, state = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    reached = learning(model)
    names = {"model.query_groups.sides.weight", "model.query_groups.content.weight", "denoising_class_embedding.weight"}
    assert names <= reached
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())  # BatchNorm's too


def test_building_waits_for_no_other_process(monkeypatch):
    """Models are built on the CPU, where processes that talk through NCCL cannot add anything up."""

    def fail(*positional, **named):
        raise AssertionError("a model under construction talks to other processes")

    PartialState(cpu=True)
    monkeypatch.setattr("accelerate.utils.reduce", fail)
    try:
        model = build_model(settings(), CLASSES)
        with pytest.raises(AssertionError, match="talks to other processes"):
            freeze_unreached(model)  # later, on the device
    finally:
        PartialState._reset_state()


def built_and_frozen():
    model = build_model(settings(), CLASSES)
    freeze_unreached(model)
    assert all(parameter.grad is None for parameter in model.parameters())
    return model.state_dict()


def test_building_depends_on_the_seed_alone():
    torch.manual_seed(0)
    first = built_and_frozen()
    after = torch.rand(1)
    torch.manual_seed(0)
    second = built_and_frozen()
    assert torch.equal(after, torch.rand(1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(value.eq(0).all() for name, value in first.items() if name.endswith("running_mean"))


@pytest.mark.parametrize(("changes", "size"), [({}, (800, 1333)), ({"shortest_edge": 100}, (100, 1333))])
def test_image_size(changes, size):
    processor = build_image_processor(settings(**changes))
    assert (processor.size["shortest_edge"], processor.size["longest_edge"]) == size


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved")
    build_model(settings(), CLASSES).save_pretrained(directory)
    SapDetrImageProcessorPil().save_pretrained(directory)
    return str(directory)


def test_new_grid_of_a_saved_model_brings_its_number_of_queries(saved_model):
    changes = {"model": saved_model, "data": "none", "model_overrides": {"query_grid": [3, 4]}}
    with pytest.raises(ValueError, match=r"query_grid.* change the shape of weights .* `ignore_mismatched_sizes`"):
        build_model(TrainingSettings(**changes), CLASSES)
    model = build_model(TrainingSettings(**changes, ignore_mismatched_sizes=True), CLASSES)
    assert (model.config.num_queries, model.config.query_grid) == (12, [3, 4])
    assert len(model.model.query_sides.weight) == len(model.model.query_points.weight) == 12


def test_a_saved_model_is_fine_tuned_with_groups_and_denoising(saved_model):
    fields = {"num_groups": 3, "denoising_pairs": 4}
    model = build_model(TrainingSettings(model=saved_model, data="none", model_overrides=fields), CLASSES)
    base = build_model(TrainingSettings(model=saved_model, data="none"), CLASSES).state_dict()
    tensors = model.state_dict()
    assert tensors.keys() - base.keys() == {"model.query_groups.sides.weight", "denoising_class_embedding.weight"}
    assert all(torch.equal(tensors[name], value) for name, value in base.items())
    assert model.config.point_start == "corner"  # as the saved model's points were trained


@pytest.mark.parametrize("renewed", [False, True])
def test_a_model_saved_in_half_precision_is_fine_tuned_in_float32(saved_model, tmp_path, renewed):
    AutoModelForObjectDetection.from_pretrained(saved_model, dtype=torch.bfloat16).save_pretrained(tmp_path)
    start = TrainingSettings(model=str(tmp_path), data="none", ignore_mismatched_sizes=renewed)
    model = build_model(start, OTHER_CLASSES if renewed else CLASSES)
    assert {value.dtype for value in model.state_dict().values() if value.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("build", [lambda each: build_model(each, CLASSES), build_image_processor])
def test_mistyped_model_is_named(build):
    with pytest.raises(OSError, match=r"runs/mistyped/model is not a local model directory"):
        build(TrainingSettings(model="runs/mistyped/model", data="none"))


def test_override_that_is_no_field_is_refused(saved_model):
    for start in ({"variant": "r50"}, {"model": saved_model}):
        wrong = TrainingSettings(**start, data="none", model_overrides={"decoder_layer": 1})
        with pytest.raises(ValueError, match=r"`decoder_layer` is not a field .* nearest one is `decoder_layers`"):
            build_model(wrong, CLASSES)
