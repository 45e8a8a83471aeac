"""Class-head rows of shared classes survive fine-tuning's new head; all others start anew."""

import pytest
import torch
from tiny_dino import tiny_dino
from tiny_model import tiny_model
from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

from sap_detr_cli.settings.train import TrainingSettings
from sap_detr_hf.data.dataset import DetectionData
from sap_detr_hf.model.coco_labels import COCO_ID2LABEL
from sap_detr_hf.model.initialization import PRIOR_BIAS
from sap_detr_hf.training.model import build_model
from sap_detr_hf.weights.class_rows import class_tensors, shared_classes

HEAD = {f"class_heads.{i}.layers.2.{part}" for i in (0, 1) for part in ("weight", "bias")}


def test_names_match_whatever_case_spaces_and_underscores():
    new = {0: "Traffic_Light", 1: "zebu", 2: "PERSON", 3: "hotdog"}
    assert shared_classes(COCO_ID2LABEL, new) == {0: 10, 2: 1, 3: 58}


def test_renamed_classes():
    new = {0: "pedestrian", 1: "car"}
    assert shared_classes(COCO_ID2LABEL, new, {"Pedestrian": "person"}) == {0: 1, 1: 3}
    with pytest.raises(ValueError, match="'walker' is renamed, but no class of the data"):
        shared_classes(COCO_ID2LABEL, new, {"walker": "person"})
    with pytest.raises(ValueError, match="'human' is renamed, but no class of the model"):
        shared_classes(COCO_ID2LABEL, new, {"pedestrian": "human"})


def test_a_name_of_several_classes_matches_none():
    assert shared_classes({0: "N/A", 1: "n/a", 2: "cat"}, {0: "N/A", 1: "cat"}) == {1: 2}


@pytest.mark.parametrize("num_labels", [6, 32])  # 32 is the model's width: hidden layers have as many rows
def test_class_tensors_are_those_that_grow_with_the_classes(num_labels):
    assert class_tensors(tiny_model(num_labels=num_labels, category_ids=list(range(num_labels)))) == HEAD


def test_class_tensors_of_other_detectors():
    backbone = ResNetConfig(embedding_size=4, hidden_sizes=[4, 4, 4, 4], depths=[1, 1, 1, 1], out_features=["stage4"])
    config = DetrConfig(backbone_config=backbone, d_model=16, encoder_layers=1, decoder_layers=1, num_labels=5)
    assert class_tensors(DetrForObjectDetection(config)) == {f"class_labels_classifier.{p}" for p in ("weight", "bias")}


def _data(names):
    id2label = dict(enumerate(names))
    ids = [index + 10 for index in id2label]
    return DetectionData(None, id2label, ids, dict(zip(ids, names, strict=True)), "data")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("base")
    base = tiny_model(id2label=dict(enumerate(["cat", "Traffic Light", "dog"])), num_labels=3)
    base.save_pretrained(directory)
    return base.state_dict(), str(directory)


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["traffic_light", "ship", "Cat", "van"], {0: 1, 2: 0}),
        (["dog", "ship", "cat"], {0: 2, 2: 0}),  # as many classes as before
        (["ship", "van"], {}),
        (["van", "ship", "plane"], {}),
    ],
)
def test_fine_tuning_keeps_the_rows_of_shared_classes(saved, names, pairs, capsys):
    old, directory = saved
    settings = TrainingSettings(model=directory, data="none", ignore_mismatched_sizes=True)
    model = build_model(settings, _data(names))
    new = model.state_dict()
    assert model.config.id2label == dict(enumerate(names))
    for name in HEAD:
        assert len(new[name]) == len(names)
        for index in range(len(names)):
            if index in pairs:
                assert torch.equal(new[name][index], old[name][pairs[index]])
            elif name.endswith("bias"):
                assert new[name][index].item() == pytest.approx(PRIOR_BIAS)
            else:
                assert not any(torch.equal(new[name][index], row) for row in old[name])
    assert all(torch.equal(new[name], old[name]) for name in old if name not in HEAD)
    said = capsys.readouterr().err
    kept = ", ".join(names[index] for index in pairs) or "no class"
    assert f"keeps {kept} of {directory}; newly initialized: " in said


def test_heads_of_a_pyramid_and_its_denoising_keep_their_rows(tmp_path):
    base = tiny_dino(id2label=dict(enumerate(["cat", "Traffic Light", "dog"])), num_labels=3)
    base.save_pretrained(tmp_path)
    settings = TrainingSettings(model=str(tmp_path), data="none", ignore_mismatched_sizes=True)
    new = build_model(settings, _data(["traffic_light", "ship", "Cat", "van"])).state_dict()
    old = base.state_dict()
    for name in ("class_head.weight", "class_head.bias", "model.selection.class_head.weight",
                 "denoising_class_embedding.weight"):  # fmt: skip
        assert len(new[name]) == 4
        assert torch.equal(new[name][[0, 2]], old[name][[1, 0]]), name


def test_the_same_classes_stay_as_they_are(saved, capsys):
    old, directory = saved
    names = ["cat", "Traffic Light", "dog"]
    settings = TrainingSettings(model=directory, data="none", ignore_mismatched_sizes=True)
    new = build_model(settings, _data(names)).state_dict()
    assert all(torch.equal(new[name], old[name]) for name in old)
    assert "Class head" not in capsys.readouterr().err


def test_classes_of_another_name(saved):
    old, directory = saved
    settings = {"model": directory, "data": "none", "class_mapping": {"semaphore": "traffic light"}}
    with pytest.raises(ValueError, match="`class_mapping` needs a new class head"):
        TrainingSettings(**settings)
    new = build_model(TrainingSettings(**settings, ignore_mismatched_sizes=True), _data(["semaphore", "van"]))
    assert all(torch.equal(new.state_dict()[name][0], old[name][1]) for name in HEAD)


def test_as_wide_as_the_model(tmp_path):
    """Hidden layers of the head stay, though they have as many rows as there are classes."""
    base = tiny_model(num_labels=32)
    base.save_pretrained(tmp_path)
    settings = TrainingSettings(model=str(tmp_path), data="none", ignore_mismatched_sizes=True)
    new = build_model(settings, _data([f"class {i}" for i in range(32)])).state_dict()
    assert torch.equal(new["class_heads.0.layers.0.weight"], base.state_dict()["class_heads.0.layers.0.weight"])
    assert not torch.equal(new["class_heads.0.layers.2.weight"], base.state_dict()["class_heads.0.layers.2.weight"])
