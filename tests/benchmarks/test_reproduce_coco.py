"""Reproducing a published AP, on a small checkpoint and a val2017 of two pictures."""

import argparse
import json

import pytest
import torch
from PIL import Image
from released_arithmetic import synthetic_checkpoint

from benchmarks import reproduce_coco as command
from sap_detr_hf.hub import model_card
from sap_detr_hf.model.coco_labels import COCO_CATEGORIES


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco")
    (folder / "val2017").mkdir()
    (folder / "annotations").mkdir()
    images = [{"id": number, "file_name": f"{number}.jpg", "width": 64, "height": 48} for number in (139, 285)]
    for image in images:
        Image.effect_noise((64, 48), 80).convert("RGB").save(folder / "val2017" / image["file_name"])
    boxes = [{"id": i, "image_id": image["id"], "category_id": 18, "bbox": [5, 5, 30, 20], "area": 600, "iscrowd": 0}
             for i, image in enumerate(images, start=1)]  # fmt: skip
    categories = [{"id": number, "name": name} for number, name in COCO_CATEGORIES.items()]
    content = {"images": images, "annotations": boxes, "categories": categories}
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("released") / "checkpoint.pth"
    state, args = synthetic_checkpoint(classes=91)
    torch.save({"model": state, "args": argparse.Namespace(**args)}, path)
    return path


@pytest.mark.parametrize(("ap", "code", "verdict"), [(0.0, 0, "AP reproduced"), (43.1, 1, "AP NOT reproduced")])
def test_converts_evaluates_compares_and_shows_the_card(
    checkpoint, coco, tmp_path, monkeypatch, capsys, ap, code, verdict
):
    reported = {"r50": {"AP": ap, "AP_small": 0.0, "AP_medium": 0.0, "AP_large": 0.0}}
    monkeypatch.setattr(model_card, "REPORTED_BY_AUTHORS", reported)
    monkeypatch.setattr(model_card, "variant_of", lambda config: "r50")
    monkeypatch.setattr(model_card, "ARCHITECTURE", ())  # the checkpoint is smaller than any published one
    arguments = [str(checkpoint), str(coco), "--output", str(tmp_path), "--device", "cpu"]
    assert command.main([*arguments, "--publish", "someone/sap-detr-r50", "--dry-run"]) == code
    shown = capsys.readouterr().out
    assert verdict in shown
    assert "someone/sap-detr-r50" in shown
    assert "model.safetensors" in shown
    outcome = json.loads((tmp_path / "reproduction.json").read_text())
    assert outcome["reported"] == reported["r50"]
    measured = json.loads((tmp_path / "evaluation" / "results.json").read_text())["metrics"]["AP"]
    assert outcome["measured"]["AP"] == pytest.approx(100 * measured)


def test_models_without_a_published_ap_are_refused(checkpoint, coco, tmp_path, capsys):
    assert command.main([str(checkpoint), str(coco), "--output", str(tmp_path), "--device", "cpu"]) == 2
    assert "none of the models whose AP the authors report (r50, " in capsys.readouterr().err


def test_the_published_numbers_are_the_paper_s():
    assert [values["AP"] for values in model_card.REPORTED_BY_AUTHORS.values()] == [43.1, 46.0, 44.4, 46.9]
