import json
import re

import numpy as np
import pytest

from sap_detr_hf.data.coco import (
    parse_box,
    parse_crowd,
    parse_image_id,
    parse_name,
    parse_whole_number,
    read_boxes,
    read_coco,
    standard_objects,
)
from sap_detr_hf.data.findings import ERRORS, Findings, check_boxes
from sap_detr_hf.data.image_paths import find_images

CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


def coco(**changes):
    """One image of 96 x 64 with one box; `changes` of the annotation, None removes a key."""
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 6, 30, 40], "area": 700, "iscrowd": 0}
    images = [{"id": 1, "file_name": "a.png", "width": 96, "height": 64}]
    return {"images": images, "annotations": [annotation | changes], "categories": CATEGORIES}


def read(tmp_path, content, write=None):
    file = tmp_path / "train.json"
    file.write_bytes(json.dumps(content).encode() if write is None else write(content))
    return read_coco(file)


@pytest.mark.parametrize(
    ("rule", "value", "expected"),
    [
        (parse_whole_number, 1, 1),
        (parse_whole_number, 1.0, 1),
        (parse_whole_number, "1", 1),
        (parse_whole_number, " 1.0 ", 1),
        (parse_whole_number, np.int32(7), 7),
        (parse_whole_number, -(2**63), -(2**63)),
        (parse_whole_number, None, ValueError("is missing")),
        (parse_whole_number, 1.5, ValueError("is 1.5, not a whole number")),
        (parse_whole_number, "1.5", ValueError("not a whole number")),
        (parse_whole_number, float("nan"), ValueError("is NaN, not")),
        (parse_whole_number, True, ValueError("is true, not")),
        (parse_whole_number, "1_000", ValueError("not a whole number")),
        (parse_whole_number, "\u0661", ValueError("not a whole number")),
        (parse_whole_number, 2**63, ValueError("of 64 bits")),
        (parse_whole_number, 1e300, ValueError("of 64 bits")),
        (parse_whole_number, "9" * 5000, ValueError("not a whole number")),
        (parse_image_id, "img_1", "img_1"),
        (parse_image_id, "12e4", "12e4"),
        (parse_image_id, "000000000139", 139),
        (parse_image_id, "1.5", ValueError("not a whole number")),
        (parse_image_id, "  ", ValueError("not a whole number")),
        (parse_image_id, "\ud800", ValueError("not a whole number")),
        (parse_box, ["5", 6, "3e1", 40.5], [5, 6, 30, 40.5]),
        (parse_box, (1, 2, 3, 10**400), [1, 2, 3, float("inf")]),
        (parse_box, [1, 2, 3], ValueError("has 3 numbers, not 4")),
        (parse_box, [1, 2, 3, None], ValueError("is missing")),
        (parse_box, [1, 2, 3, "nan"], ValueError("not a number")),
        (parse_box, "1234", ValueError("not four numbers")),
        (parse_crowd, None, False),
        (parse_crowd, "0", False),
        (parse_crowd, 1.0, True),
        (parse_crowd, True, True),
        (parse_crowd, 2, ValueError("is 2, not 0 or 1")),
        (parse_crowd, "false", ValueError('is "false", not 0 or 1')),
        (parse_name, "猫 Straße", "猫 Straße"),
        (parse_name, "two\r\nlines\u2028here", "two lines here"),
        (parse_name, 7, "7"),
        (parse_name, None, ValueError("is missing")),
        (parse_name, " \n", ValueError("not a name")),
        (parse_name, "\ud800", ValueError("is missing")),
        (parse_name, ["cat"], ValueError("not a name")),
    ],
)
def test_one_rule_for_each_value(rule, value, expected):
    if isinstance(expected, ValueError):
        with pytest.raises(ValueError, match=re.escape(str(expected))):
            rule(value)
    else:
        result = rule(value)
        assert result == expected
        assert type(result) is type(expected)


ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_encodings(tmp_path, encoding):
    content = coco()
    content["categories"] = [{"id": 1, "name": "猫"}]
    found = read(tmp_path, content, lambda c: json.dumps(c, ensure_ascii=False).encode(encoding))
    assert found.categories == {1: "猫"}
    assert found.findings.counts == {}


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (b"", "is not JSON: .*line 1"),
        (b'{\n"images": [', "is not JSON: .*line 2"),
        ('{\n\n"images": "猫狗"}'.encode("gbk"), "is not JSON in UTF-8: .* in line 3; save it as UTF-8"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"images": [], "images": [1]}', 'is not JSON: an object gives "images" 2 times; keep one'),
        (b'{"images": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b"[]", 'has no list "images"'),
        (b'{"images": []}', "lists no images"),
        (b'{"images": [null, {"id": 1.5}]}', "2 x malformed image .*, e.g. image null: it is no object"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, encoded, message):
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path, None, lambda _: encoded)
    assert "train.json" in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"image_id": "1", "category_id": "1"},
        {"image_id": 1.0, "category_id": 1.0},
        {"bbox": ["5", "6.0", 30, 40.0], "area": "700"},
        {"iscrowd": None},
        {"iscrowd": "0"},
        {"iscrowd": False},
    ],
)
def test_ways_to_write_the_same(tmp_path, changes):
    found = read(tmp_path, coco(**changes))
    assert found.findings.counts == {}
    assert found.boxes.image.tolist() == [0]
    assert found.boxes.category.tolist() == [1]
    assert found.boxes.boxes.tolist() == [[5, 6, 30, 40]]
    assert found.boxes.areas.tolist() == [700]
    assert found.boxes.crowd.tolist() == [False]


def test_missing_and_null_area_is_width_times_height(tmp_path):
    content = coco(area=None)
    content["annotations"].append({"image_id": 1, "category_id": 2, "bbox": [0, 0, 2, 3]})
    content["annotations"].append({"image_id": 1, "category_id": 2, "bbox": [9, 9, -2, 3]})
    content["annotations"].append({"image_id": 1, "category_id": 2, "bbox": [9, 9, -2, -3]})
    # A negative area would take the box out of AP, a positive one of two negative sides would give it a size.
    assert read(tmp_path, content).boxes.areas.tolist() == [1200, 6, 0, 0]
    objects = {"bbox": [[9, 9, -2, 3], [9, 9, -2, -3], [0, 0, 2, 3]], "category": [2, 2, 2]}
    assert standard_objects(objects)["area"] == [0, 0, 6]


def test_image_ids_are_all_numbers_or_all_text(tmp_path):
    content = coco(image_id="b")
    content["images"].append({"id": "b", "file_name": "b.png", "width": 5, "height": 5})
    found = read(tmp_path, content)
    assert found.image_ids.tolist() == ["1", "b"]
    assert found.boxes.image.tolist() == [1]
    assert read(tmp_path, coco(image_id="1")).image_ids.tolist() == [1]


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"annotations": None}, "no annotations"),
        ({"categories": None}, "no categories"),
        ({"categories": [{"id": 1, "name": "cat"}, {"id": "1", "name": "bird"}]}, "category id twice"),
        ({"categories": [{"id": 1, "name": "cat"}] * 2}, "category listed twice"),
        ({"categories": [{"id": 1, "name": ""}]}, "malformed category"),
        ({"categories": [None]}, "malformed category"),
        ({"categories": [{"id": 1, "name": "a\nb"}]}, "line break in a category name"),
        ({"images": [{"id": 1, "file_name": "a", "width": 9}]}, "image without size"),
        ({"images": [{"id": 1, "width": 9, "height": 9}]}, "image without file name"),
        ({"images": [{"id": 1, "file_name": "\udcff", "width": 9, "height": 9}]}, "file name that is not text"),
        ({"annotations": [{"image_id": 5, "category_id": 1, "bbox": [1, 1, 2, 2]}]}, "annotation without image"),
        ({"annotations": ["a"]}, "malformed annotation"),
    ],
)
def test_faults_of_lists(tmp_path, changes, kind):
    assert read(tmp_path, coco() | changes).findings.counts == {kind: 1}


def test_lines_are_those_of_the_entries_also_behind_one_that_is_no_object():
    findings, box = Findings(), {"image_id": 1, "category_id": 1, "bbox": [5, 6, 30, 40]}
    entries, lines = [3, box, box | {"category_id": "x"}], [("a.txt", line) for line in (1, 2, 3)]
    assert read_boxes(entries, {1: 0}, findings, origins=lines).origins == [("a.txt", 2)]
    assert [example.split(":")[0] for example in findings.examples["malformed annotation"]] == [
        "a.txt, line 1",
        "a.txt, line 3",
    ]


def test_image_that_is_malformed(tmp_path):
    for side in (0, -4, 1.5, float("inf"), "wide", True):
        content = coco()
        content["images"].append({"id": 2, "file_name": "b.png", "width": side, "height": 3})
        found = read(tmp_path, content)
        assert found.findings.counts == {"malformed image": 1}, side
        assert "width is" in found.findings.examples["malformed image"][0]
        assert found.image_ids.tolist() == [1]


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, None),
        ({"area": 1200}, None),
        ({"area": 1340}, None),  # a mask may reach a pixel over its box
        ({"area": 40}, None),  # a thin mask from corner to corner
        ({"area": 0}, "area far from the box"),
        ({"area": 1200 / (96 * 64)}, "area far from the box"),
        ({"area": 120_000}, "area far from the box"),
        ({"area": -5}, "area out of range"),
        ({"area": 2e10}, "area out of range"),
        ({"area": float("nan")}, "area not finite"),
        ({"area": 1e300}, "area not finite"),
        ({"bbox": [float("nan"), 1, 2, 3]}, "box not finite"),
        ({"bbox": [1, 1, float("inf"), 3], "area": None}, "box not finite"),
        ({"bbox": [1, 1, 1e39, 3], "area": 3}, "box not finite"),
        ({"bbox": [1, 1, 10**400, 3], "area": 3}, "box not finite"),
        ({"bbox": [0.1, 0.1, 0.3, 0.5], "area": None}, "box in the first pixel"),
        ({"bbox": [5, 6, -30, 40], "area": None}, "zero-area box"),
        ({"bbox": [296.65, 38.33, 1.03, 0.0], "area": 0.0}, "zero-area box"),  # annotation 918 of COCO but for y
        ({"bbox": [90, 6, 30, 40]}, "box outside the image"),
        ({"category_id": 3}, "unknown category"),
    ],
)
def test_faults_of_boxes(tmp_path, changes, kind):
    content = coco(**changes)
    content["images"][0]["width"] = 400 if kind == "zero-area box" else 96
    found, findings = read(tmp_path, content), Findings()
    with np.errstate(all="raise"):
        learned = check_boxes(findings, found.boxes, found.image_ids, found.sizes, found.categories)
    assert findings.counts == ({} if kind is None else {kind: 1})
    if kind in ERRORS:
        assert "image id 1" in findings.examples[kind][0]
        with pytest.raises(ValueError, match=rf"train.json cannot be trained on or evaluated: \d+ x {kind}"):
            findings.refuse_errors(tmp_path / "train.json")
    elif kind != "zero-area box":
        assert learned.all()


@pytest.mark.parametrize(
    ("name", "files", "expected"),
    [
        ("a.png", ["images/a.png", "images/A.png", "data/a.png"], "images/a.png"),
        ("images/a.png", ["images/a.png"], "images/a.png"),
        ("train/a.png", ["images/a.png", "train/a.png"], "train/a.png"),
        ("sub\\a.png", ["images/sub/a.png", "images/a.png"], "images/sub/a.png"),
        ("/a.png", ["images/a.png"], "images/a.png"),
        ("a.png", ["data/a.png"], "data/a.png"),
        ("C:\\photos\\a.png", ["images/a.png"], "images/a.png"),
        ("http://host/x/a.png", ["images/a.png"], "images/a.png"),
        ("../../upload/a.png", ["images/a.png"], "images/a.png"),
        ("A.PNG", ["images/a.png"], "images/a.png"),
        ("Sub/a.png", ["images/sub/a.png"], "images/sub/a.png"),
        ("e\u0301.png", ["images/\u00e9.png"], "images/\u00e9.png"),
        ("a", ["images/a.png", "images/a.txt"], "images/a.png"),
        ("a", ["images/a.png", "images/a.jpg"], "ambiguous"),
        ("A.png", ["images/a.png", "images/a.PNG"], "ambiguous"),
        ("x/a.png", ["images/a.png", "images/other.png"], "images/a.png"),
        ("a.png", ["images/b.png", "a/a.png"], "missing"),
        ("a.jpg", ["images/a.png"], "missing"),  # may be a mask
        ("a\0.png", ["images/a.png"], "missing"),
    ],
)
def test_where_a_file_is_found(tmp_path, name, files, expected):
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    (tmp_path / "images").mkdir(exist_ok=True)
    found = find_images([name, name], tmp_path / "images", tmp_path / "train.json")
    if expected in ("ambiguous", "missing"):
        assert found.paths[0] not in {str(tmp_path / file) for file in files}
        assert set(found.ambiguous) == ({found.paths[0]} if expected == "ambiguous" else set())
    else:
        assert found.paths == [str(tmp_path / expected)] * 2
        assert not found.ambiguous


def test_two_names_never_lead_to_one_file(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").touch()
    for other in ("a.png", "y/a.png"):
        found = find_images(["x/a.png", other], tmp_path / "images", tmp_path / "train.json")
        assert found.paths[0] == str(tmp_path / "images/x/a.png")
        assert "several names" in found.ambiguous[found.paths[0]]
