"""A SAP-DINO-DETR is published as a SAP-DETR is: its own files travel, and its card says what is true of it."""

import pytest
from tiny_dino import tiny_dino

from sap_detr_cli.settings.train import TrainingSettings
from sap_detr_hf import SapDetrImageProcessorPil
from sap_detr_hf.hub.publish import card_for, describe_upload


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
