"""A saved SAP-DINO-DETR in the pipeline, prediction and evaluation, by its `model_type` alone."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_dino import tiny_dino
from transformers import AutoConfig, AutoModel, pipeline

from sap_detr_cli.settings.predict import PredictionSettings
from sap_detr_hf import SapDetrImageProcessorPil, SapDinoDetrForObjectDetection, SapDinoDetrModel
from sap_detr_hf.data.dataset import load_detection_data
from sap_detr_hf.evaluation.evaluate import evaluate_detections, ground_truth
from sap_detr_hf.inference.predict import Predictor
from sap_detr_hf.inference.sources import InputImages
from sap_detr_hf.weights.pretrained import load_detector, load_pretrained

NAMES = ["ant", "bee", "cat", "dog", "elk", "fox"]
CATEGORY_IDS = [3, 5, 7, 9, 11, 13]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dino")
    model = tiny_dino(category_ids=CATEGORY_IDS, id2label=dict(enumerate(NAMES)))
    with torch.no_grad():
        model.class_head.bias += 3.0  # scores around 0.2 instead of 0.01
    model.save_pretrained(folder)
    SapDetrImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for number, (width, height) in enumerate([(120, 80), (70, 90), (120, 80)]):
        pixels = generator.integers(0, 255, (height // 10, width // 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((width, height)).save(folder / f"{number}.png")
    return folder


def test_auto_classes_know_the_type(model_dir):
    assert AutoConfig.from_pretrained(model_dir).model_type == "sap_dino_detr"
    assert type(AutoModel.from_pretrained(model_dir)) is SapDinoDetrModel
    assert type(load_pretrained(str(model_dir))[0]) is SapDinoDetrForObjectDetection


def test_prediction_finds_what_the_pipeline_finds(model_dir, pictures, tmp_path):
    detector = pipeline("object-detection", model=str(model_dir))
    settings = PredictionSettings(
        model=str(model_dir), inputs=[str(pictures)], output=str(tmp_path / "out"), threshold=0.2, batch_size=2
    )
    model, image_processor = load_detector(settings.model, "cpu")
    found = list(Predictor(model, image_processor, settings).predict(InputImages(settings.inputs)))
    assert len(found) == 3
    for prepared, detections in found:
        expected = detector(prepared.image, threshold=0.2)
        assert len(detections) == len(expected) > 0
        torch.testing.assert_close(
            detections.scores, torch.tensor([each["score"] for each in expected]), rtol=0, atol=1e-5
        )
        assert detections.labels == [each["label"] for each in expected]
        width, height = prepared.image.size
        assert ((detections.points > 0) & (detections.points < torch.tensor([width, height]))).all()


def test_evaluation_gives_the_data_sets_category_ids(model_dir, pictures):
    import json

    files = sorted(pictures.glob("*.png"))
    images = [
        {"id": number, "file_name": file.name, "width": Image.open(file).width, "height": Image.open(file).height}
        for number, file in enumerate(files)
    ]
    box = {"bbox": [10, 10, 30, 30], "area": 900, "iscrowd": 0}
    annotations = [{"id": i, "image_id": i, "category_id": CATEGORY_IDS[i], **box} for i in range(3)]
    categories = [{"id": number, "name": name} for number, name in zip(CATEGORY_IDS, NAMES, strict=True)]
    path = pictures / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    data = load_detection_data(path, images=pictures)
    model, image_processor = load_pretrained(str(model_dir))
    results = [
        evaluate_detections(model, data.dataset, image_processor, ground_truth(data), batch_size=size, progress=False)
        for size in (1, 2)
    ]
    assert results[0].metrics == pytest.approx(results[1].metrics, nan_ok=True)
    _, scores, categories = results[0].predictions.detections(0)
    assert set(categories.tolist()) <= set(CATEGORY_IDS)
    assert len(scores)
