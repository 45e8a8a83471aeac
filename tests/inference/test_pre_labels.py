"""`sap-detr predict --as-annotations`: detections that load again as a data set."""

import json
import os

import datasets
import numpy as np
import pytest
import supervision
import torch
from PIL import Image
from project_scripts import load_script
from tiny_model import tiny_model

from sap_detr_hf import SapDetrImageProcessorPil
from sap_detr_hf.data.checks import full_checks
from sap_detr_hf.data.classes import check_categories
from sap_detr_hf.data.dataset import load_detection_data

CATEGORY_IDS = [3, 5, 7, 9, 11, 13]
NAMES = ["ant", "bee", "cat", "dog", "elk", "fox"]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a model and photographs, one of them in a subfolder and turned by EXIF."""
    folder = tmp_path_factory.mktemp("work")
    model = tiny_model(category_ids=CATEGORY_IDS, id2label=dict(enumerate(NAMES)))
    with torch.no_grad():
        model.class_heads[-1].layers[-1].bias += 3.0  # scores around 0.2 instead of 0.01
    model.save_pretrained(folder / "model")
    SapDetrImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder / "model")
    (folder / "photos" / "deep").mkdir(parents=True)
    exif = Image.Exif()
    exif[274] = 6
    for seed, (name, options) in enumerate({"a.png": {}, "deep/a.jpg": {"exif": exif}, "b.png": {}}.items()):
        pixels = np.random.default_rng(seed).integers(0, 255, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((120, 80)).save(folder / "photos" / name, **options)
    (folder / "photos" / "broken.png").write_text("no image")
    return folder


def predict(work, output, *arguments, inputs="photos"):
    options = ["--output", work / output, "--threshold", "0.15", "--no-pictures", *arguments]
    code = load_script("predict").main([str(each) for each in (work / "model", work / inputs, *options)])
    results = json.loads((work / output / "predictions.json").read_text())
    return code, results


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def loaded(folder, names):
    data = load_detection_data(folder)
    report = full_checks(data, progress=False)
    assert report.ok, report.table()
    assert not report.warnings.keys() - {"category without boxes", "EXIF-rotated image", "box in the first pixel"}
    assert sorted(os.path.relpath(path, folder / "images" / "train") for path in data.dataset["image_path"][:]) == names
    return data


def test_coco_keeps_ids_and_scores(work):
    code, results = predict(work, "coco", "--as-annotations", "coco")
    assert code == 1  # the broken one
    assert len(results) > 5
    folder = work / "coco" / "pre_labels"
    data = loaded(folder, ["a.png", "b.png", "deep/a.jpg"])
    assert data.categories == dict(zip(CATEGORY_IDS, NAMES, strict=True))
    model = tiny_model(category_ids=CATEGORY_IDS, id2label=dict(enumerate(NAMES)))
    check_categories(data, model.config)  # to train on after the correction
    content = json.loads((folder / "annotations" / "instances_train.json").read_text())
    key = ("image_id", "category_id", "score")
    assert [[each[name] for name in key] for each in content["annotations"]] == [
        [each[name] for name in key] for each in results
    ]
    for found, result in zip(content["annotations"], results, strict=True):
        (image,) = (image for image in content["images"] if image["id"] == found["image_id"])
        x, y, w, h = result["bbox"]
        left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, image["width"]), min(y + h, image["height"])
        assert found["bbox"] == pytest.approx([left, top, right - left, bottom - top], abs=1e-3)


def test_yolo_has_the_same_boxes(work):
    _, results = predict(work, "yolo", "--as-annotations", "yolo")
    folder = work / "yolo" / "pre_labels"
    data = loaded(folder, ["a.png", "b.png", "deep/a.jpg"])
    assert list(data.categories.values()) == NAMES
    classes = [category for row in data.dataset for category in row["objects"]["category"]]
    assert sorted(CATEGORY_IDS[number] for number in classes) == sorted(each["category_id"] for each in results)
    assert all(len(line.split()) == 5 for line in (folder / "labels/train/a.txt").read_text().splitlines())


@pytest.mark.parametrize("to", ["coco", "yolo"])
def test_supervision_reads_the_same_boxes(work, to):
    predict(work, f"reread_{to}", "--as-annotations", to)
    folder = work / f"reread_{to}" / "pre_labels"
    images = folder / "images" / "train"
    if to == "coco":
        oracle = supervision.DetectionDataset.from_coco(images, folder / "annotations" / "instances_train.json")
    else:  # supervision reads no subfolders
        oracle = supervision.DetectionDataset.from_yolo(images, folder / "labels" / "train", folder / "data.yaml")
    assert len(oracle.image_paths) == (3 if to == "coco" else 2)
    data = load_detection_data(folder)
    own = {row["image_path"]: row["objects"] for row in data.dataset}
    lines = map(json.loads, (work / f"reread_{to}" / "detections.jsonl").read_text().splitlines())
    predicted = {os.path.relpath(each["file"], work / "photos"): each["detections"] for each in lines}
    for path in oracle.image_paths:
        name, found, read = os.path.relpath(path, images), own[path], oracle.annotations[path]
        limits = [80, 120] * 2 if name == "deep/a.jpg" else [120, 80] * 2
        boxes = np.array([[*each["box"].values()] for each in predicted[name]]).clip(0, limits)
        assert len(boxes) > 1
        corners = np.array(found["bbox"])
        corners[:, 2:] += corners[:, :2]
        np.testing.assert_allclose(read.xyxy, corners, atol=1e-4)
        np.testing.assert_allclose(read.xyxy, boxes, atol=0.006)  # which are rounded
        labels = [each["label"] for each in predicted[name]]
        assert [data.categories[category] for category in found["category"]] == labels
        assert [oracle.classes[number] for number in read.class_id] == labels


def test_images_of_a_coco_json_keep_their_names_and_ids(work):
    images = [{"id": number, "file_name": name} for number, name in ((70, "deep/a.jpg"), (50, "a.png"))]
    (work / "list.json").write_text(json.dumps({"images": images}))
    code, _ = predict(work, "json", "--as-annotations", "coco", "--images", work / "photos", inputs="list.json")
    assert code == 0
    data = loaded(work / "json" / "pre_labels", ["a.png", "deep/a.jpg"])
    assert sorted(data.dataset["image_id"][:]) == [50, 70]


def test_overwrite_replaces_them_and_without_the_option_there_are_none(work):
    predict(work, "again", "--as-annotations", "yolo")
    predict(work, "again", "--as-annotations", "coco", "--overwrite")
    assert sorted(path.name for path in (work / "again" / "pre_labels").iterdir()) == ["annotations", "images"]
    predict(work, "again", "--overwrite")
    assert not (work / "again" / "pre_labels").exists()
