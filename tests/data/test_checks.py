import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from project_scripts import load_script

from sap_detr_hf import SapDetrConfig
from sap_detr_hf.data.checks import cheap_checks, full_checks
from sap_detr_hf.data.dataset import load_detection_data
from sap_detr_hf.data.findings import EXAMPLES, WARNINGS
from sap_detr_hf.demo.digits import make_digits

CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 4, "name": "dog"}]
NAN = float("nan")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def check_data():
    return load_script("check_data").main


def write(folder, boxes, images=("a.png", "b.png"), ids=(1, 2), categories=CATEGORIES):
    """`boxes`: (image id, category id, bbox[, iscrowd]); every image is 60 x 40."""
    (folder / "images").mkdir(exist_ok=True)
    for name in images:
        pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / name)
    content = {
        "images": [
            {"id": i, "file_name": name, "width": 60, "height": 40} for i, name in zip(ids, images, strict=True)
        ],
        "annotations": [
            {"id": number, "image_id": i, "category_id": c, "bbox": bbox, "iscrowd": crowd[0] if crowd else 0}
            for number, (i, c, bbox, *crowd) in enumerate(boxes)
        ],
        "categories": categories,
    }
    (folder / "train.json").write_text(json.dumps(content))
    return folder


GOOD = [(1, 1, [5, 5, 10, 10]), (2, 4, [0, 0, 60, 40]), (2, 1, [3, 3, 5, 5]), (2, 1, [3, 3, 9, 9], 1)]


def test_nothing_wrong(tmp_path):
    report = full_checks(load_detection_data(write(tmp_path, GOOD)), num_queries=2, progress=False)
    assert report.ok
    assert report.boxes_per_category == {"cat": 2, "dog": 1}
    assert (report.images, report.boxes, report.crowd, report.images_without_boxes) == (2, 3, 1, 0)
    assert "no problems found" in report.table()
    report.raise_on_errors()


@pytest.mark.parametrize(
    ("boxes", "kind", "example"),
    [
        ([(1, 1, [5, 5, 0, 10])], "zero-area box", "image id 1, box x 5, y 5, width 0, height 10"),
        ([(1, 1, [5, 5, 10, -1])], "zero-area box", "image id 1"),
        ([(1, 1, [-2, 5, 10, 10])], "box outside the image", "image id 1"),
        ([(2, 1, [50, 5, 11.5, 10])], "box outside the image", "image id 2"),
        ([(1, 1, [5, 39, 10, 2.5])], "box outside the image", "image id 1"),
        ([(1, 1, [5, NAN, 10, 10])], "box not finite", "image id 1"),
        ([(1, 1, [5, 5, float("inf"), 10])], "box not finite", "image id 1"),
        ([(1, 1, [5, 5, 10, 10])], "duplicate box", "image id 1"),
        ([(2, 3, [5, 5, 10, 10])], "unknown category", "category id 3, image id 2"),
        ([(1, 1, [n, n, 9, 9]) for n in (1, 2, 3)], "more boxes than queries", "image id 1: 4 boxes, 3 queries"),
        ([(8, 1, [5, 5, 9, 9])], "annotation without image", "train.json"),
    ],
)
def test_each_problem_of_annotations_is_found_alone(tmp_path, boxes, kind, example):
    report = cheap_checks(load_detection_data(write(tmp_path, GOOD + boxes)), num_queries=3)
    assert dict(report.counts) == {kind: 1}
    assert example in report.examples[kind][0]
    assert kind in report.table()
    assert report.ok == (kind in WARNINGS)


def test_rounded_coordinates_and_same_box_of_another_class_are_fine(tmp_path):
    boxes = [*GOOD, (1, 4, [5, 5, 10, 10]), (2, 1, [50, 30, 10.9, 10.9])]
    assert cheap_checks(load_detection_data(write(tmp_path, boxes))).ok


def test_boxes_in_shares_of_the_image(tmp_path):
    report = cheap_checks(load_detection_data(write(tmp_path, [(1, 1, [0.1, 0.2, 0.3, 0.4]), (2, 4, [0, 0, 1, 1])])))
    assert report.errors == {"boxes not in pixels": 1}


def test_only_boxes_that_training_learns_are_counted(tmp_path):
    nothing = [(1, 1, [5, 5, 0, 10]), (2, 4, [70, 5, 9, 9]), (2, 1, [5, 5, 9, 9], 1)]
    report = cheap_checks(load_detection_data(write(tmp_path, nothing)), num_queries=2)
    assert (report.boxes, report.images_without_boxes, report.errors) == (0, 2, {"no boxes": 1})
    assert report.warnings["category without boxes"] == 2
    two_of_four = [*nothing[1:2], *GOOD[1:3], (2, 1, [5, 5, 0, 10])]
    report = cheap_checks(load_detection_data(write(tmp_path, two_of_four)), num_queries=2)
    assert (report.boxes, report.errors) == (2, {})


def test_categories_of_one_name_are_counted_apart(tmp_path):
    twins = [{"id": 1, "name": "cat"}, {"id": 4, "name": "cat"}]
    report = cheap_checks(load_detection_data(write(tmp_path, GOOD, categories=twins)))
    assert report.warnings == {"category name twice": 1}
    assert report.boxes_per_category == {"cat": 2, "cat (4)": 1}


def test_script_compares_the_splits(tmp_path, check_data, capsys):
    content = json.loads((write(tmp_path, GOOD) / "train.json").read_text())
    content["categories"] = [{"id": 1, "name": "dog"}, {"id": 4, "name": "cat"}, {"id": 5, "name": "eel"}]
    (tmp_path / "val.json").write_text(json.dumps(content))
    assert check_data([str(tmp_path), "--fast", "--json", str(tmp_path / "new" / "report.json")]) == 1
    printed = capsys.readouterr().out
    assert f'{tmp_path}, split "train"' in printed
    assert (
        'error: category 1 is "dog" in "val" but "cat" in "train": all splits must use the same category ids' in printed
    )
    assert 'error: category 5 ("eel") of "val" is not in "train"' in printed
    assert len(json.loads((tmp_path / "new" / "report.json").read_text())["category_conflicts"]) == 3


def test_category_without_a_name(tmp_path, check_data, capsys):
    write(tmp_path, GOOD, categories=[{"id": 1}])
    assert check_data([str(tmp_path), "--split", "train"]) == 1
    printed = capsys.readouterr().out
    assert "error: 1 x malformed category (" in printed
    assert 'category {"id": 1}: name is missing' in printed


def test_problems_of_lists(tmp_path):
    folder = write(tmp_path, GOOD, images=("a.png", "a.png"), ids=(2, 2))
    report = cheap_checks(load_detection_data(folder))
    assert report.errors == {"duplicate image id": 1}
    assert report.warnings == {"duplicate file name": 1, "annotation without image": 1}
    report = cheap_checks(load_detection_data(write(tmp_path, [])))
    assert report.errors == {"no boxes": 1}
    assert report.warnings == {"category without boxes": 2}


def test_problems_of_images(tmp_path):
    names = [f"{letter}.jpg" for letter in "abcdef"]
    folder = write(tmp_path, GOOD, images=names, ids=range(1, 7))
    (folder / "images/a.jpg").unlink()
    (folder / "images/b.jpg").write_bytes((folder / "images/b.jpg").read_bytes()[:400])
    Image.new("RGB", (61, 40)).save(folder / "images/c.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(folder / "images/d.jpg", exif=exif)  # 40 x 60 when upright
    Image.new("RGB", (40, 60)).save(folder / "images/e.jpg", exif=exif)  # 60 x 40 when upright
    data = load_detection_data(folder)
    assert dict(cheap_checks(data).counts) == {"missing image": 1}
    report = full_checks(data, progress=False)
    assert report.errors == {"missing image": 1, "broken image": 1, "wrong size": 2}
    assert report.warnings == {"EXIF-rotated image": 1}
    assert "b.jpg (image id 2)" in report.examples["broken image"][0]
    assert "c.jpg (image id 3): 61 x 40, annotated 60 x 40" in report.examples["wrong size"][0]
    assert "d.jpg (image id 4): 40 x 60 when upright" in report.examples["wrong size"][1]
    assert "e.jpg (image id 5)" in report.examples["EXIF-rotated image"][0]
    with pytest.raises(ValueError, match=r"cannot be trained on or evaluated: 1 x missing image .*a\.jpg.*wrong size"):
        report.raise_on_errors()


def test_warnings_do_not_stop_training(tmp_path):
    report = cheap_checks(load_detection_data(write(tmp_path, [*GOOD, (1, 1, [5, 5, 0, 10])])))
    report.raise_on_errors()
    assert report.warnings


def test_many_problems_are_counted_and_a_few_kept(tmp_path):
    many = [(1, 9, [1, 1, 2 + number / 100, 5]) for number in range(EXAMPLES + 30)]
    report = cheap_checks(load_detection_data(write(tmp_path, GOOD + many)))
    assert report.counts["unknown category"] == EXAMPLES + 30
    assert len(report.examples["unknown category"]) == EXAMPLES


def test_data_set_with_stored_images(tmp_path):
    folder = write(tmp_path, GOOD)
    rows = load_detection_data(folder).dataset.to_list()
    for row in rows:
        row["image"] = {"bytes": Path(row.pop("image_path")).read_bytes(), "path": None}
    rows[1]["image"]["bytes"] = rows[1]["image"]["bytes"][:90]
    features = datasets.Features(
        {**load_detection_data(folder).dataset.features, "image": datasets.Image(decode=False)}
    )
    del features["image_path"]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "saved")
    report = full_checks(load_detection_data(tmp_path / "saved"), progress=False)
    assert dict(report.counts) == {"broken image": 1}
    assert report.boxes_per_category == {"1": 2, "4": 1}


def test_script_on_good_data(tmp_path, check_data, capsys):
    make_digits(tmp_path, train=40, val=40, size=(96, 96))
    assert check_data([str(tmp_path), "--queries", "6", "--json", str(tmp_path / "report.json")]) == 0
    assert "40 images" in capsys.readouterr().out
    (tmp_path / "annotations/instances_both.json").write_text(
        (tmp_path / "annotations/instances_train.json").read_text()
    )
    both = ["--split", "train", "both", "--images", str(tmp_path / "images/train")]
    assert check_data([str(tmp_path), "--fast", *both, "--json", str(tmp_path / "both.json")]) == 0
    assert 'warning: 40 of 40 images of "both" are also in "train"' in capsys.readouterr().out
    assert len(json.loads((tmp_path / "both.json").read_text())["shared_images"]) == 1
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["ok"]
    assert content["splits"]["val"]["images_opened"]
    assert sum(content["splits"]["train"]["boxes_per_category"].values()) == content["splits"]["train"]["boxes"]
    assert check_data([str(tmp_path), "--queries", "5", "--fast"]) == 1
    assert "more boxes than queries" in capsys.readouterr().out


def test_script_compares_with_a_model(tmp_path, check_data, capsys):
    folder = write(tmp_path, GOOD)
    SapDetrConfig(id2label={0: "cat", 1: "dog"}, category_ids=[1, 4]).save_pretrained(tmp_path / "good")
    SapDetrConfig(id2label={0: "cat", 1: "cow"}, category_ids=[1, 4]).save_pretrained(tmp_path / "bad")
    arguments = [str(folder), "--split", "train", "--fast", "--model"]
    assert check_data([*arguments, str(tmp_path / "good")]) == 0
    assert check_data([*arguments, str(tmp_path / "bad"), "--json", str(tmp_path / "r.json")]) == 0  # a new head does
    assert 'warning: Category 4 is "dog"' in capsys.readouterr().out
    assert check_data([*arguments, str(tmp_path / "bad"), "--strict"]) == 1
    assert check_data([*arguments, "no/such/model"]) == 2
    assert "no/such/model is not a local model directory" in capsys.readouterr().err
    assert "cow" in json.loads((tmp_path / "r.json").read_text())["model_mismatches"][0]


def test_script_passes_with_warnings_unless_strict(tmp_path, check_data, capsys):
    folder = write(tmp_path, [*GOOD, (1, 1, [5, 5, 0, 10])])
    arguments = [str(folder), "--split", "train", "--fast"]
    assert check_data(arguments) == 0
    assert "warning: 1 x zero-area box (" in capsys.readouterr().out
    assert check_data([*arguments, "--strict"]) == 1


def test_script_on_what_is_no_data_set(tmp_path, check_data, capsys):
    assert check_data([str(tmp_path)]) == 2
    assert f'error: {tmp_path} has no split "train"' in capsys.readouterr().err
    write(tmp_path, GOOD)
    assert check_data([str(tmp_path / "train.json"), "--fast"]) == 0
