"""A SAP-DINO-DETR is published as a SAP-DETR is: its own files travel, and its card says what is true of it."""

import json

import pytest
import torch
from tiny_dino import tiny_dino
from tiny_model import tiny_inputs
from transformers import AutoModelForObjectDetection

from sap_detr_cli.settings.train import TrainingSettings
from sap_detr_hf import SapDetrImageProcessorPil
from sap_detr_hf.hub.publish import card_for, describe_upload, prepared_folder


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_dino().save_pretrained(folder)
    SapDetrImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    (folder / "settings.yaml").write_text(TrainingSettings(variant="dino-r50", data="someone/data").to_yaml())
    return folder


def test_card_and_files(model_dir):
    card = card_for(model_dir, "someone/dino", license="mit")
    assert "on a pyramid of 4 feature maps" in card
    assert "A SAP-DINO-DETR object detector" in card
    assert "A [SAP-DETR]" not in card
    assert "grid of" not in card
    assert "single feature map" not in card
    assert "points and sampling lie on each image's own region" in card
    listed = describe_upload(model_dir, "someone/dino", "the card")
    assert "modeling_sap_dino_detr.py" in listed
    assert "deformable_attention.py" in listed
    assert "  modeling_sap_detr.py" not in listed


def test_without_its_denoising_it_has_its_own_fields_only(tmp_path):
    model = tiny_dino(denoising_pairs=4)
    model.save_pretrained(tmp_path)
    SapDetrImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(tmp_path)
    before = json.loads((tmp_path / "config.json").read_text())
    with prepared_folder(tmp_path, "the card") as folder:
        config = json.loads((folder / "config.json").read_text())
        published = AutoModelForObjectDetection.from_pretrained(folder)
    assert config["denoising_pairs"] == 0
    assert config.keys() - before.keys() == {"auto_map"}
    assert published.denoising_class_embedding is None
    with torch.no_grad():
        assert torch.equal(published(*tiny_inputs()).logits, model(*tiny_inputs()).logits)
