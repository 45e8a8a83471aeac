"""`sap-detr convert-data`: there and back between COCO, YOLO and Pascal VOC."""

import json
import os
from xml.etree import ElementTree

import datasets
import numpy as np
import pytest
import supervision
from PIL import Image
from project_scripts import load_script

from sap_detr_hf.data.checks import full_checks
from sap_detr_hf.data.classes import class_indices
from sap_detr_hf.data.dataset import load_detection_data

NAMES = {3: "cat", 8: "no", 9: "never drawn"}  # in YAML, a bare `no` is false
IMAGES = {"one.png": 5, "deep/two.jpg": 6, "deep/two.png": 11}
BOXES = [  # image id, category id, box, crowd
    (5, 8, [10, 5, 40, 30], 0),
    (5, 3, [0.25, 1.5, 95.75, 62.5], 0),
    (11, 3, [90.5, 60.25, 10, 10], 0),  # beyond the image of 96 x 64
    (11, 3, [2, 3, 30, 40], 1),
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    for split in ("train", "val"):
        images = []
        for name, image_id in IMAGES.items():
            (folder / "images" / split / name).parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(image_id).integers(0, 255, (64, 96, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / split / name)
            images.append({"id": image_id, "file_name": name, "width": 96, "height": 64})
        annotations = [
            {"id": number, "image_id": i, "category_id": c, "bbox": box, "area": box[2] * box[3], "iscrowd": crowd}
            for number, (i, c, box, crowd) in enumerate(BOXES)
        ]
        categories = [{"id": number, "name": name} for number, name in NAMES.items()]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


def convert(*arguments):
    return load_script("convert_data").main([str(argument) for argument in arguments])


def boxes_by_pixels(data):
    """First pixels of the image -> class indices and boxes: names and ids may differ."""
    found = {}
    for row in data.dataset:
        with Image.open(row["image_path"]) as image:
            pixels = np.asarray(image)[0, :4].tobytes()
        objects = row["objects"]
        keep = [place for place, crowd in enumerate(objects["iscrowd"]) if not crowd]
        boxes = np.array(objects["bbox"]).reshape(-1, 4)[keep]
        boxes[:, 2:] = np.minimum(boxes[:, :2] + boxes[:, 2:], [96, 64]) - boxes[:, :2]
        found[pixels] = class_indices([objects["category"][place] for place in keep], data.category_ids), boxes
    return found


@pytest.mark.parametrize("to", ["coco", "yolo", "voc"])
def test_there_and_back(source, tmp_path, capsys, to):
    assert convert(source, tmp_path / to, "--to", to) == 0
    assert ("2 boxes skipped" in capsys.readouterr().out) == (to != "coco")  # the crowd region of each split
    assert convert(tmp_path / to, tmp_path / "back", "--to", "coco", "--link") == 0
    for split in ("train", "val"):
        original = load_detection_data(source, split)
        for folder in (tmp_path / to, tmp_path / "back"):
            data = load_detection_data(folder, split)
            assert list(data.id2label.values()) == list(NAMES.values())
            assert full_checks(data, progress=False).ok
            expected, found = boxes_by_pixels(original), boxes_by_pixels(data)
            assert found.keys() == expected.keys()
            for pixels, (classes, boxes) in found.items():
                assert classes.tolist() == expected[pixels][0].tolist()
                np.testing.assert_allclose(boxes, expected[pixels][1], atol=0.01)
    if to == "coco":
        assert data.categories == NAMES
        assert sorted(data.dataset["image_id"][:]) == [5, 6, 11]
        assert sum(map(sum, (row["objects"]["iscrowd"] for row in data.dataset))) == 1
    train = load_detection_data(tmp_path / "back", "train")
    names = {os.path.basename(path) for path in train.dataset["image_path"][:]}
    assert names == {"one.png", "two.jpg", "two.png" if to == "coco" else "two_2.png"}
    links = [path for path in (tmp_path / "back").rglob("*") if path.is_symlink()]
    assert len(links) == 6
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".partial")]


def test_one_split_becomes_two(source, tmp_path, capsys):
    (source / "val.json").unlink()
    assert convert(source, tmp_path / "half", "--to", "coco") == 2
    assert convert(source, tmp_path / "half", "--to", "coco", "--val-share", "0.3") == 2
    assert "--val-share divides one split" in capsys.readouterr().err
    for name in ("two", "again"):
        assert convert(source, tmp_path / name, "--to", "yolo", "--split", "train", "--val-share", "0.3") == 0
    assert "train: 2 images, val: 1 images" in capsys.readouterr().out
    found = [
        {path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*.*")} for name in ("two", "again")
    ]
    assert found[0] == found[1]
    assert load_detection_data(tmp_path / "two", "val").id2label == dict(enumerate(NAMES.values()))


def test_what_was_written_is_in_the_form_of_the_format(source, tmp_path):
    for to in ("coco", "yolo", "voc"):
        convert(source, tmp_path / to, "--to", to)
    yolo, voc = tmp_path / "yolo", tmp_path / "voc"
    assert (yolo / "labels" / "train" / "deep" / "two.txt").read_text() == ""
    assert (yolo / "labels" / "train" / "one.txt").read_text().splitlines()[
        0
    ] == "1 0.312500 0.312500 0.416667 0.468750"
    box = ElementTree.parse(voc / "Annotations" / "one.xml").find("object/bndbox")
    assert [side.text for side in box] == ["11", "6", "50", "35"]
    places = yolo / "images" / "train", yolo / "labels" / "train", yolo / "data.yaml"
    oracle = supervision.DetectionDataset.from_yolo(*map(str, places))  # not in subfolders
    assert oracle.classes == list(NAMES.values())
    (found,) = oracle.annotations.values()
    np.testing.assert_allclose(found.xyxy, [[10, 5, 50, 35], [0.25, 1.5, 96, 64]], atol=0.01)
    content = json.loads((tmp_path / "coco" / "annotations" / "instances_train.json").read_text())
    assert [(each["id"], each["image_id"], each["bbox"]) for each in content["annotations"]] == [
        (number, image_id, box) for number, (image_id, _, box, _) in enumerate(sorted(BOXES, key=lambda b: b[0]), 1)
    ]


def test_a_json_file_becomes_the_named_split(source, tmp_path):
    file = source / "images" / "train" / "instances_result.json"
    (source / "train.json").rename(file)
    for name, options in {"named": ["--split", "train"], "unnamed": []}.items():
        assert convert(file, tmp_path / name, "--to", "coco", *options) == 0
    assert len(load_detection_data(tmp_path / "named", "train").dataset) == 3
    assert [path.name for path in (tmp_path / "unnamed" / "annotations").iterdir()] == ["instances_result.json"]


def test_warnings_are_told(source, tmp_path, capsys):
    assert convert(source, tmp_path / "yolo", "--to", "yolo") == 0
    told = capsys.readouterr().out
    assert f'{source}, split "val"\n' in told
    assert "warning: 1 x box outside the image" in told
    assert "image id 11, box x 90.5" in told
    convert(tmp_path / "yolo", tmp_path / "voc", "--to", "voc")
    assert "outside" not in capsys.readouterr().out


@pytest.mark.parametrize("turned_by", ["exif", "json"])
def test_sizes_that_the_pictures_do_not_have_are_refused(source, tmp_path, capsys, turned_by):
    exif = Image.Exif()
    exif[274] = 6
    picture, content = source / "images" / "val" / "one.png", json.loads((source / "val.json").read_text())
    if turned_by == "exif":
        with Image.open(picture) as image:
            image.save(picture, exif=exif)
    else:
        content["images"][0] |= {"width": 64, "height": 96}
        (source / "val.json").write_text(json.dumps(content))
    assert convert(source, tmp_path / "new", "--to", "yolo") == 2
    assert not (tmp_path / "new").exists()
    error = capsys.readouterr().err
    assert "1 x wrong size" in error
    assert f"{picture} (image id 5): " in error


@pytest.mark.parametrize("name", ["images", "Images"])
def test_labels_lie_where_yolo_readers_seek_them(source, tmp_path, name):
    for split in ("train", "val"):
        (source / "images" / split / "deep").rename(source / "images" / split / name)
        file = source / f"{split}.json"
        file.write_text(file.read_text().replace("deep/", f"{name}/"))
    convert(source, tmp_path / "yolo", "--to", "yolo")
    data = load_detection_data(tmp_path / "yolo")
    assert sum(len(row["objects"]["bbox"]) for row in data.dataset) == 3  # and a crowd region
    for path in data.dataset["image_path"]:  # as ultralytics does it
        assert os.path.isfile("/labels/".join(path.rsplit("/images/", 1))[:-4] + ".txt")


def test_images_without_the_suffix_of_images(source, tmp_path):
    for split in ("train", "val"):
        (source / "images" / split / "one.png").rename(source / "images" / split / "one")
        (source / "images" / split / "deep" / "two.jpg").rename(source / "images" / split / "deep" / "two.jpeg_large")
        text = (source / f"{split}.json").read_text()
        text = text.replace('"one.png"', '"one"').replace("two.jpg", "two.jpeg_large")
        (source / f"{split}.json").write_text(text)
    convert(source, tmp_path / "yolo", "--to", "yolo")
    data = load_detection_data(tmp_path / "yolo")
    assert {os.path.basename(path) for path in data.dataset["image_path"]} == {
        "one.png",
        "two.jpeg_large.jpg",
        "two.png",
    }
    assert boxes_by_pixels(data).keys() == boxes_by_pixels(load_detection_data(source)).keys()


def test_stored_images_and_text_ids(source, tmp_path):
    rows = []
    for image_id in ("a", "b"):
        with Image.open(source / "images" / "train" / "one.png") as image:
            rows.append(
                {"image_id": image_id, "image": image.copy(), "objects": {"bbox": [[1, 2, 3, 4]], "category": [0]}}
            )
    features = datasets.Features(
        {
            "image_id": datasets.Value("string"),
            "image": datasets.Image(),
            "objects": {
                "bbox": datasets.List(datasets.List(datasets.Value("float32"))),
                "category": datasets.List(datasets.ClassLabel(names=["cat"])),
            },
        }
    )
    datasets.DatasetDict(train=datasets.Dataset.from_list(rows, features=features)).save_to_disk(tmp_path / "saved")
    assert convert(tmp_path / "saved", tmp_path / "coco", "--to", "coco", "--split", "train") == 0
    data = load_detection_data(tmp_path / "coco")
    assert full_checks(data, progress=False).ok
    assert data.dataset["image_id"][:] == [1, 2]
    assert [os.path.basename(path) for path in data.dataset["image_path"][:]] == ["a.png", "b.png"]
    assert data.dataset[0]["objects"]["bbox"] == [[1, 2, 3, 4]]


def test_refused_before_anything_is_written(source, tmp_path, capsys):
    def refused(*arguments):
        assert convert(*arguments) == 2
        assert not (tmp_path / "new").exists()
        return capsys.readouterr().err

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    assert "is not an empty folder" in refused(source, tmp_path / "full", "--to", "yolo")
    assert (tmp_path / "full" / "mine.txt").exists()
    assert "`to` = 'csv' must be one of coco, yolo, voc" in refused(source, tmp_path / "new", "--to", "csv")
    assert 'has no split "test"' in refused(source, tmp_path / "new", "--to", "voc", "--split", "test")
    content = json.loads((source / "val.json").read_text())
    categories, gone = content["categories"], [{**each, "file_name": "gone.png"} for each in content["images"]]
    for splits, change, message in (
        (["train", "val"], {"categories": [*categories, {"id": 10, "name": "cat"}]}, 'name "cat": two categories'),
        (
            ["val"],
            {"categories": [{"id": 3, "name": "dog"}, *categories[1:]]},
            "all splits must use the same category ids",
        ),
        (["val"], {"categories": categories, "images": gone}, "missing image"),
    ):
        for split in ("train", "val"):
            (source / f"{split}.json").write_text(json.dumps(content | (change if split in splits else {})))
        assert message in refused(source, tmp_path / "new", "--to", "voc")
