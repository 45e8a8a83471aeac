"""Detection in slices: the detector's own numbers on each crop, through SAHI, in `predict` and `evaluate`."""

import importlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from project_scripts import load_script
from tiny_model import tiny_model

from sap_detr_hf import SapDetrImageProcessorPil
from sap_detr_hf.demo.digits import make_digits
from sap_detr_hf.inference.detector import Detector, SalientDetections
from sap_detr_hf.weights.pretrained import load_detector

pytest.importorskip("sahi")
from sahi.postprocess.combine import batched_nms
from sahi.slicing import get_slice_bboxes

from sap_detr_hf.inference.slices import SahiDetectionModel, SlicedDetector, seen_better_next_door


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def detector():
    model = tiny_model(id2label=dict(enumerate("0123456789")), num_labels=10, category_ids=list(range(1, 11)))
    with torch.no_grad():
        model.class_heads[-1].layers[-1].bias += 3.0  # scores around 0.2 instead of 0.01
    return Detector(model, SapDetrImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96}), 0.1, 40)


@pytest.fixture(scope="module")
def model_dir(detector, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    detector.model.save_pretrained(folder)
    detector.image_processor.save_pretrained(folder)
    return folder


def picture(width=150, height=110):
    pixels = np.random.default_rng(0).integers(0, 255, (height // 5, width // 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height))


def on_each_crop(detector, image, size, overlap, whole_image) -> SalientDetections:
    """What slices must give: the detector on crops, one by one, and the best of each group of duplicates."""
    corners = get_slice_bboxes(image.height, image.width, size, size, False, overlap, overlap)
    assert len(corners) > 3
    parts, visible = [], []
    for corner in [*corners, *[[0, 0, *image.size]] * whole_image]:
        crop = image.crop(corner)
        found = detector.detect(crop)
        worse = seen_better_next_door(found.boxes, crop.size, corner[:2], image.size, int(overlap * size))
        found = found.select((~worse).nonzero()[:, 0])
        assert (found.points >= 0).all()
        assert (found.points <= torch.tensor(crop.size)).all()
        parts.append(found.shifted(*corner[:2]))
        visible.append(found.boxes.clamp(min=0) + torch.tensor(corner[:2] * 2))  # as SAHI compares boxes
    found = SalientDetections.join(parts)
    rows = np.concatenate([torch.cat(visible), found.scores[:, None], found.classes[:, None]], axis=1)
    return found.select(torch.tensor(batched_nms(rows, "IOU", 0.5)))


@pytest.mark.parametrize(("overlap", "whole_image", "batch_size"), [(0.25, True, 1), (0.5, False, 5), (0.0, True, 4)])
def test_numbers_are_the_detectors_on_each_crop(detector, overlap, whole_image, batch_size):
    image = picture()
    found = SlicedDetector(detector, 60, overlap, whole_image, batch_size).detect(image)
    expected = on_each_crop(detector, image, 60, overlap, whole_image)
    assert len(found) == len(expected) > 20
    assert found.labels == expected.labels
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.boxes, expected.boxes, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.points, expected.points, atol=1e-3, rtol=0)
    assert (found.scores.diff() <= 0).all()
    assert bool((found.queries >= 0).any()) == whole_image  # of the whole picture alone, where attention is shown


def test_a_picture_no_larger_than_a_slice_is_detected_as_without(detector):
    found, expected = SlicedDetector(detector, 150).detect(picture()), detector.detect(picture())
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.queries, expected.queries)


def test_what_fills_the_overlap_is_not_dropped_by_both_slices():
    for left, right in ((80.5, 99.5), (80, 99), (82, 99.8), (79, 100), (81, 95)):
        box = torch.tensor([[left, 20, right, 40]])
        first = seen_better_next_door(box, (100, 100), (0, 0), (300, 100), 20)
        second = seen_better_next_door(box - torch.tensor([80.0, 0, 80, 0]), (100, 100), (80, 0), (300, 100), 20)
        assert not (first & second).any(), (left, right)


def test_a_part_that_the_next_slice_shows_whole_is_dropped():
    boxes = torch.tensor([[90.0, 20, 100, 40], [70, 20, 100, 40], [90, 20, 98, 40], [0, 20, 10, 40], [0, 0, 40, 10]])
    worse = [seen_better_next_door(boxes, (100, 100), (x, 0), (300, 100), 20).tolist() for x in (0, 80, 200)]
    assert worse == [
        [True, False, False, False, False],
        [True, False, False, True, False],
        [False, False, False, True, False],
    ]


def test_sahi_leaves_the_process_as_it_was(detector, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    before = Image.MAX_IMAGE_PIXELS
    assert before is not None
    SlicedDetector(detector, 60).detect(picture())
    assert (Image.MAX_IMAGE_PIXELS, os.environ["CUDA_VISIBLE_DEVICES"]) == (before, "1")


def test_sahis_own_functions_take_the_model(detector, monkeypatch):
    from sahi.predict import get_prediction

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # which SAHI lifts: put it back afterwards
    found = get_prediction(picture(), SahiDetectionModel(detector), confidence_threshold=0.24).object_prediction_list
    expected = detector.detect(picture())
    assert detector.threshold == 0.1
    assert [each.score.value for each in found] == expected.scores[expected.scores > 0.24].tolist()
    assert 0 < len(found) < len(expected)


def test_broken_weights_are_one_sentence_with_the_pictures_name(detector):
    model = tiny_model()
    with torch.no_grad():
        model.model.query_sides.weight.fill_(float("nan"))
    sliced = SlicedDetector(Detector(model, detector.image_processor), 60)
    with pytest.raises(ValueError, match=r"output for a\.png is not finite"):
        sliced.detect(picture(), "a.png")


SLICES = ["--slice", "60", "--overlap", "0.25", "--batch-size", "4"]


def test_predict_and_evaluate_give_the_same(model_dir, tmp_path):
    make_digits(tmp_path / "data", train=1, val=3, size=(120, 100))
    images = sorted((tmp_path / "data" / "images" / "val").iterdir())
    output = [
        "--output",
        str(tmp_path / "out"),
        "--threshold",
        "0",
        "--top-k",
        "1000",
        "--workers",
        "0",
        "--no-pictures",
    ]
    assert load_script("predict").main([str(model_dir), str(images[0]), *output, *SLICES]) == 0
    predicted = json.loads((tmp_path / "out" / "predictions.json").read_text())
    saved = Detector(*load_detector(str(model_dir), "cpu"), 0.0)
    expected = on_each_crop(saved, Image.open(images[0]), 60, 0.25, 1)
    assert [each["score"] for each in predicted] == pytest.approx(expected.scores[:1000].tolist(), abs=1e-6)
    assert len(predicted) > 100
    (record,) = map(json.loads, (tmp_path / "out" / "detections.jsonl").read_text().splitlines())
    assert record["detections"][0]["point"]["x"] == pytest.approx(float(expected.points[0, 0]), abs=0.01)

    report = ["--output", str(tmp_path / "report"), "--workers", "0", "--device", "cpu"]
    assert load_script("evaluate").main([str(model_dir), str(tmp_path / "data"), *report, *SLICES]) == 0
    evaluated = json.loads((tmp_path / "report" / "predictions.json").read_text())
    first = sorted((each["score"] for each in evaluated if each["image_id"] == 1), reverse=True)
    assert first == pytest.approx([each["score"] for each in predicted], abs=1e-6)
    assert {each["image_id"] for each in evaluated} == {1, 2, 3}
    assert json.loads((tmp_path / "report" / "results.json").read_text())["settings"]["slice"] == 60


def test_a_broken_picture_is_named(model_dir, tmp_path, capsys):
    make_digits(tmp_path / "data", train=1, val=2, size=(100, 100))
    (tmp_path / "data" / "images" / "val" / "000002.jpg").write_bytes(b"no picture")
    report = ["--output", str(tmp_path / "report"), "--workers", "0", "--device", "cpu"]
    assert load_script("evaluate").main([str(model_dir), str(tmp_path / "data"), *report, *SLICES]) == 2
    assert "000002.jpg" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--slice", "8"], "at least 16"),
        (["--slice", "64", "--overlap", "1"], "below 0.9"),
        (["--overlap", "0.5"], "give their size with --slice"),
        (["--no-whole-image"], "--whole-image only works with slices"),
    ],
)
@pytest.mark.parametrize("verb", ["predict", "evaluate"])
def test_senseless_slices_are_refused(verb, options, message, capsys):
    assert load_script(verb).main(["model", "input", "--output", "out", *options]) == 2
    assert message in capsys.readouterr().err


def test_padded_batches_do_not_go_with_slices(capsys):
    assert load_script("evaluate").main(["model", "input", "--slice", "64", "--pad-batches"]) == 2
    assert "--pad-batches" in capsys.readouterr().err


def test_opencv_without_libgl_is_named_with_its_cure(tmp_path, monkeypatch):
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in list(sys.modules):
        if name.split(".")[0] in ("cv2", "sahi") or name == "sap_detr_hf.inference.slices":
            monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r"cannot be imported \(libGL.*`pip install opencv-python-headless`\.$"):
        importlib.import_module("sap_detr_hf.inference.slices")


def test_opencv_needs_no_display():
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    done = subprocess.run([sys.executable, "-c", "import cv2"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
