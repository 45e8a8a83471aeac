"""YOLO and Pascal VOC data sets, written by hand here: the same rows, training step and AP as the same set in COCO."""

import json
import os
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import supervision
import torch
from PIL import Image
from project_scripts import load_script
from tiny_model import tiny_model
from tiny_training import run_here, write_recipe

from sap_detr_hf import SapDetrImageProcessorPil
from sap_detr_hf.data.checks import cheap_checks, full_checks
from sap_detr_hf.data.classes import class_indices
from sap_detr_hf.data.dataset import load_detection_data
from sap_detr_hf.data.image_paths import walk_images
from sap_detr_hf.data.samples import DetectionRows, collate
from sap_detr_hf.evaluation.coco_metric import METRIC_NAMES, CocoMetric
from sap_detr_hf.evaluation.evaluate import ground_truth

CLASSES = ["cat", "dog", "no"]  # in the order of the alphabet, as Pascal VOC has no other; a bare `no` is false in YAML
SPLITS = {
    "train": {
        "first": ((96, 64), [(0, 10, 5, 40, 30), (2, 0, 0, 96, 64)]),
        "second": ((64, 96), [(1, 8, 16, 33, 50), (1, 40, 60, 24, 36)]),
        "third": ((80, 80), []),
        "fourth": ((96, 64), [(0, 48, 32, 17, 9)]),
    },
    "val": {"fifth": ((96, 64), [(1, 20, 20, 30, 30), (0, 3, 7, 50, 21)]), "sixth": ((64, 64), [(2, 1, 1, 5, 60)])},
}
"""Split -> image -> size and boxes: class, x, y, width, height in pixels."""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write(path: Path, text: str):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_image(path: Path, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(map(ord, path.stem))
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)).save(path)


def coco_set(folder: Path) -> Path:
    for split, images in SPLITS.items():
        content = {"images": [], "annotations": [], "categories": []}
        content["categories"] = [{"id": 10 * (i + 1), "name": name} for i, name in enumerate(CLASSES)]
        for name in sorted(images):
            size, boxes = images[name]
            write_image(folder / "images" / split / f"{name}.png", size)
            content["images"].append({"id": name, "file_name": f"{name}.png", "width": size[0], "height": size[1]})
            for number, *box in boxes:
                content["annotations"].append({"image_id": name, "category_id": 10 * (number + 1), "bbox": box})
        write(folder / "annotations" / f"instances_{split}.json", json.dumps(content))
    return folder


def yolo_label(size, box) -> str:
    number, x, y, w, h = box
    width, height = size
    return f"{number} {(x + w / 2) / width} {(y + h / 2) / height} {w / width} {h / height}"


def yolo_set(
    folder: Path, images="images/{}", labels="labels/{}", yaml="train: images/train\nval: images/val\n"
) -> Path:
    for split, content in SPLITS.items():
        for name, (size, boxes) in content.items():
            write_image(folder / images.format(split) / f"{name}.png", size)
            if boxes:  # an image without objects has no file; "third"
                text = "\n".join(yolo_label(size, box) for box in boxes)
                write(folder / labels.format(split) / f"{name}.txt", text)
    if yaml:
        write(folder / "data.yaml", f"{yaml}nc: 3\nnames: [cat, dog, no]\n")
    return folder


def roboflow_yolo(folder: Path) -> Path:
    yolo_set(folder, "{}/images", "{}/labels", "train: ../train/images\nval: ../valid/images\n")
    (folder / "val").rename(folder / "valid")
    return folder


def cvat_yolo(folder: Path) -> Path:
    """Lists of images, with a folder in front that is not there; names as a mapping."""
    yolo_set(folder, yaml="")
    for split, content in SPLITS.items():
        write(folder / f"{split}.txt", "".join(f"data/images/{split}/{name}.png\n" for name in sorted(content)))
    names = "".join(f"  {number}: {name}\n" for number, name in enumerate(CLASSES))
    write(folder / "data.yaml", f"path: ./\ntrain: train.txt\nval: val.txt\nnames:\n{names}")
    return folder


def label_studio_yolo(folder: Path) -> Path:
    yolo_set(folder, yaml="")
    write(folder / "classes.txt", "cat\ndog\nno\n")
    return folder


def polygons_yolo(folder: Path) -> Path:
    """The same boxes as polygons of three and more corners."""
    yolo_set(folder)
    for split, images in SPLITS.items():
        for name, ((width, height), boxes) in images.items():
            lines = []
            for number, x, y, w, h in boxes:
                points = [(x, y + h / 2), (x + w / 2, y), (x + w, y + h), (x + 1, y + h)][: 3 if number else 4]
                shares = [value for px, py in points for value in (px / width, py / height)]
                lines.append(" ".join(map(str, [number, *shares])))
            if boxes:
                write(folder / "labels" / split / f"{name}.txt", "\n".join(lines))
    return folder


def voc_xml(name, size, boxes) -> str:
    objects = "".join(
        f"""  <object>
    <name>{CLASSES[number]}</name>
    <difficult>0</difficult>
    <bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox>
  </object>
"""
        for number, x, y, w, h in boxes
    )
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<annotation>
  <filename>{name}.png</filename>
  <size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>
{objects}</annotation>
"""


def voc_set(folder: Path) -> Path:
    for split, images in SPLITS.items():
        write(folder / "ImageSets" / "Main" / f"{split}.txt", "".join(f"{name}\n" for name in sorted(images)))
        for name, (size, boxes) in images.items():
            write_image(folder / "JPEGImages" / f"{name}.png", size)
            write(folder / "Annotations" / f"{name}.xml", voc_xml(name, size, boxes))
    return folder


def roboflow_voc(folder: Path) -> Path:
    for split, images in SPLITS.items():
        for name, (size, boxes) in images.items():
            place = folder / {"val": "valid"}.get(split, split)
            write_image(place / f"{name}.png", size)
            write(place / f"{name}.xml", voc_xml(name, size, boxes))
    return folder


def windows_yolo(folder: Path) -> Path:
    """Folders as on another machine under Windows, and their names in other letters."""
    yaml = "train: C:\\Users\\me\\cells\\Images\\train\nval: Images\\val\n"
    return yolo_set(folder, "Images/{}", "Labels/{}", yaml)


def upper_case_voc(folder: Path) -> Path:
    roboflow_voc(folder)
    for path in folder.rglob("*.xml"):
        path.rename(path.with_suffix(".XML"))
    return folder


FORMATS = [yolo_set, roboflow_yolo, cvat_yolo, label_studio_yolo, polygons_yolo, windows_yolo, voc_set, roboflow_voc]
FORMATS += [upper_case_voc]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Of each split the rows, number of boxes and AP of the set in COCO, and the losses of two steps."""
    folder = coco_set(tmp_path_factory.mktemp("coco"))
    cache = tmp_path_factory.mktemp("coco_cache")
    data = {split: load_detection_data(folder, split, cache_dir=cache) for split in SPLITS}
    measured = {split: (rows(each), cheap_checks(each).boxes, average_precision(each)) for split, each in data.items()}
    return measured, losses_of_two_steps(data["train"])


def rows(data):
    """Image id -> size, class indices and boxes."""
    return {
        row["image_id"]: (
            (row["width"], row["height"]),
            class_indices(row["objects"]["category"], data.category_ids).tolist(),
            np.array(row["objects"]["bbox"]).reshape(-1, 4),
        )
        for row in data.dataset
    }


def assert_equal_rows(found, expected, tolerance=1e-4):
    assert found.keys() == expected.keys()
    for image_id, (size, classes, boxes) in found.items():
        assert (size, classes) == expected[image_id][:2]
        np.testing.assert_allclose(boxes, expected[image_id][2], atol=tolerance)


def losses_of_two_steps(data):
    torch.manual_seed(0)
    samples = DetectionRows(data, SapDetrImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96}))
    order = sorted(range(len(samples)), key=lambda place: data.dataset[place]["image_id"])
    batch = collate([samples[place] for place in order])
    model = tiny_model(num_labels=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(2):
        loss = model(**batch).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def average_precision(data):
    """Of detections near the true boxes, some of a wrong class."""
    metric = CocoMetric(ground_truth(data))
    for split in SPLITS.values():
        for name, (_, boxes) in split.items():
            if name in metric.truth.image_ids:
                ids = [data.category_ids[(number + (x == 3)) % 3] for number, x, *_ in boxes]
                near = [[x + 1, y + 2, w, h - 1] for _, x, y, w, h in boxes]
                metric.add(name, near, [1 / (1 + place + len(name)) for place in range(len(boxes))], ids)
    return [metric.compute().metrics[name] for name in METRIC_NAMES]


@pytest.mark.parametrize("write_set", FORMATS)
def test_equals_the_same_set_in_coco(write_set, expected, tmp_path):
    measured, losses = expected
    folder = write_set(tmp_path / "data")
    for split, (expected_rows, boxes, precision) in measured.items():
        data = load_detection_data(folder, split)
        assert_equal_rows(rows(data), expected_rows)
        assert list(data.id2label.values()) == CLASSES
        report = full_checks(data, progress=False)
        assert report.ok
        assert report.boxes == boxes
        assert not data.findings.counts.keys() - {"file under another name"}
        np.testing.assert_allclose(average_precision(data), precision, rtol=0, atol=1e-12)
    np.testing.assert_allclose(losses_of_two_steps(load_detection_data(folder)), losses, rtol=1e-5)


def test_supervision_reads_the_same(tmp_path):
    yolo, voc = yolo_set(tmp_path / "yolo"), voc_set(tmp_path / "voc")
    for split in SPLITS:
        places = yolo / "images" / split, yolo / "labels" / split, yolo / "data.yaml"
        oracle = supervision.DetectionDataset.from_yolo(*map(str, places))
        assert_supervision_equal(rows(load_detection_data(yolo, split)), oracle, oracle.classes)
    oracle = supervision.DetectionDataset.from_pascal_voc(str(voc / "JPEGImages"), str(voc / "Annotations"))
    both = {**rows(load_detection_data(voc, "train")), **rows(load_detection_data(voc, "val"))}
    assert_supervision_equal(both, oracle, oracle.classes)


def assert_supervision_equal(found, oracle, classes):
    assert {Path(path).stem for path in oracle.image_paths} == found.keys()
    for path in oracle.image_paths:
        _, numbers, boxes = found[Path(path).stem]
        expected = oracle.annotations[path]
        names = ["no" if classes[number] in (False, "False") else classes[number] for number in expected.class_id]
        assert [CLASSES[number] for number in numbers] == names
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        np.testing.assert_allclose(corners, expected.xyxy.reshape(-1, 4), atol=0.5)


def test_index_is_made_once_and_anew_after_a_change(tmp_path, monkeypatch):
    folder = yolo_set(tmp_path)
    first = load_detection_data(folder)
    monkeypatch.setattr("sap_detr_hf.data.yolo._box", None)  # not called again
    assert load_detection_data(folder).dataset[0] == first.dataset[0]
    monkeypatch.undo()
    label = folder / "labels" / "train" / "fourth.txt"
    label.write_text(label.read_text().replace("0 ", "1 ", 1))
    assert rows(load_detection_data(folder))["fourth"][1] == [1]
    write_image(folder / "images" / "train" / "fourth.png", (48, 32))  # the shares mean other pixels now
    assert rows(load_detection_data(folder))["fourth"][2][0] == pytest.approx([24, 16, 8.5, 4.5])


def test_image_ids_are_numbers_where_all_names_are(tmp_path):
    for folder, names, expected in (
        ("numbers", ["000000000139", "7"], [139, 7]),
        ("mixed", ["7", "street"], ["7.png", "street.png"]),
        ("same", ["01", "1"], ["01.png", "1.png"]),
        ("decimal", ["1.5", "x"], ["1.5.png", "x.png"]),
        ("deep", ["a/x", "b/x"], ["a/x", "b/x"]),
    ):
        for name in names:
            write_image(tmp_path / folder / "images" / "train" / f"{name}.png", (32, 32))
            write(tmp_path / folder / "labels" / "train" / f"{name}.txt", "0 0.5 0.5 0.5 0.5")
        write(tmp_path / folder / "data.yaml", "train: images/train\nnames: [cat]")
        assert load_detection_data(tmp_path / folder).dataset["image_id"][:] == expected


def test_size_of_a_turned_photograph_is_the_upright_one(tmp_path):
    folder = yolo_set(tmp_path)
    picture = folder / "images" / "val" / "fifth.png"
    exif = Image.Exif()
    exif[274] = 6
    with Image.open(picture) as image:
        image.save(picture, exif=exif)
    assert rows(load_detection_data(folder, "val"))["fifth"][0] == (64, 96)


def test_keypoints_are_left_out(tmp_path):
    folder = yolo_set(tmp_path, yaml="train: images/train\nkpt_shape: [2, 3]\n")
    for label in (folder / "labels" / "train").iterdir():
        label.write_text("".join(f"{line} 0.1 0.2 2 0.3 0.4 1\n" for line in label.read_text().splitlines()))
    expected = rows(load_detection_data(yolo_set(tmp_path / "plain")))
    assert_equal_rows(rows(load_detection_data(folder)), expected)


def test_classes_of_voc(tmp_path):
    folder = voc_set(tmp_path)
    # "no" is only in `val` now, and keeps its id there.
    write(folder / "Annotations" / "first.xml", voc_xml("first", (96, 64), [(0, 10, 5, 40, 30)]))
    for split in SPLITS:
        assert load_detection_data(folder, split).categories == {1: "cat", 2: "dog", 3: "no"}
    # CVAT's list of classes has its own order, and classes without boxes.
    write(folder / "labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\nno:1,2,3::\nbird:::\ncat:::\n")
    assert load_detection_data(folder, "val").categories == {1: "no", 2: "bird", 3: "cat", 4: "dog"}


def test_the_file_of_a_voc_image(tmp_path):
    folder = voc_set(tmp_path)
    write(folder / "Annotations" / "first.xml", voc_xml("C:\\labels\\renamed", (96, 64), []))  # of before a renaming
    (folder / "JPEGImages" / "second.png").rename(folder / "JPEGImages" / "moved.png")
    write(folder / "Annotations" / "second.xml", voc_xml("moved", (64, 96), []))
    paths = {row["image_id"]: Path(row["image_path"]).name for row in load_detection_data(folder).dataset}
    assert (paths["first"], paths["second"]) == ("first.png", "moved.png")


def edit(name, text):
    return lambda folder: write(folder / name, text)


def in_xml(old, new):
    def change(folder):
        path = folder / "Annotations" / "first.xml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return change


def remove(name):
    return lambda folder: (folder / name).rename(folder.parent / f"away_{Path(name).name}")


LABEL = "labels/train/first.txt"
BOMB = '<?xml version="1.0"?>\n<!DOCTYPE a [<!ENTITY b "lol"><!ENTITY c "&b;&b;">]>\n<annotation>&c;</annotation>'
BROKEN = {
    "not a number": (
        yolo_set,
        edit(LABEL, "0 0.5 0.5 0.5 0.5\n1 0.5 half 0.1 0.1"),
        LABEL + ', line 2: number 3 is "half"',
    ),
    "nan": (yolo_set, edit(LABEL, "1 nan 0.5 0.1 0.1"), 'line 1: number 2 is "nan", not a number'),
    "class is a word": (
        yolo_set,
        edit(LABEL, "\ncat 0.5 0.5 0.1 0.1"),
        LABEL + ', line 2: category_id is "cat", not a whole',
    ),
    "wrong count": (yolo_set, edit(LABEL, "0 0.5 0.5 0.1"), "line 1: it has 4 numbers; a box has 5"),
    "with confidence": (yolo_set, edit(LABEL, "0 0.5 0.5 0.1 0.1 0.9"), "line 1: it has 6 numbers"),
    "pixels": (yolo_set, edit(LABEL, "0 48 32 10 10"), "line 1: number 2 is 48, not a share of the image's width"),
    "negative": (yolo_set, edit(LABEL, "0 0.5 -0.5 0.1 0.1"), "line 1: number 3 is -0.5, not a share"),
    "unknown class": (yolo_set, edit(LABEL, "\n3 0.5 0.5 0.1 0.1"), LABEL + ", line 2: image id first, box x 43.2"),
    "no size": (yolo_set, edit("images/train/first.png", "no image"), "broken image.*images/train/first.png"),
    "not text": (yolo_set, lambda f: (f / LABEL).write_bytes(b"\xff\xfe0\x00"), LABEL + ": .*codec can't decode"),
    "no names": (yolo_set, edit("data.yaml", "train: images/train"), 'data.yaml has no "names" of the classes'),
    "other number of classes": (
        yolo_set,
        edit("data.yaml", "train: images/train\nnc: 5\nnames: [cat, dog]"),
        'data.yaml: "nc" is 5, but "names" has 2 classes',
    ),
    "malformed yaml": (yolo_set, edit("data.yaml", "train: images\nnames: [cat"), "data.yaml is not YAML: .*line 2"),
    "empty yaml": (yolo_set, edit("data.yaml", ""), 'data.yaml has no "names"'),
    "name is a list": (
        yolo_set,
        edit("data.yaml", "train: images/train\nnames:\n- cat\n- [dog]"),
        "data.yaml, line 4: .*name is missing",
    ),
    "no such split": (
        yolo_set,
        edit("data.yaml", "val: images/val\nnames: [cat]"),
        "data.yaml has no split \"train\", it has \\['val'\\]",
    ),
    "missing folder": (yolo_set, remove("images/train"), 'data.yaml, "train": there is no .*images/train'),
    "missing labels": (
        yolo_set,
        remove("labels/train"),
        "no annotations.*data.yaml: there is no folder .*labels/train",
    ),
    "neither yaml nor names": (yolo_set, remove("data.yaml"), "no data.yaml or classes.txt"),
    "listed image missing": (cvat_yolo, remove("images/train/first.png"), "broken image.*first.png"),
    "malformed xml": (voc_set, in_xml("</object>", "</objekt>"), "first.xml is not XML: mismatched tag: line 9"),
    "no size in xml": (voc_set, in_xml("<width>96</width>", ""), "image without size.*first.xml: .*width is missing"),
    "size of 0": (voc_set, in_xml("<height>64<", "<height>0<"), "first.xml: .*height is .*0.*, not a number of pixels"),
    "entity bomb": (voc_set, edit("Annotations/first.xml", BOMB), "first.xml, line 2: it has a DOCTYPE"),
    "xml in gbk": (
        voc_set,
        edit("Annotations/first.xml", '<?xml version="1.0" encoding="gbk"?>\n<annotation/>'),
        "first.xml is not XML: multi-byte encodings",
    ),
    "other xml": (voc_set, edit("Annotations/first.xml", "<annotations/>"), "first.xml, line 1: it is <annotations>"),
    "corner is no number": (
        voc_set,
        in_xml("<xmin>11<", "<xmin>left<"),
        'first.xml, line 5: xmin is "left", not a number',
    ),
    "corner missing": (voc_set, in_xml("<ymax>35</ymax>", ""), "first.xml, line 5: ymax is missing"),
    "no name": (voc_set, in_xml("<name>cat</name>", ""), "first.xml, line 5: name is missing"),
    "box far outside": (voc_set, in_xml("<xmax>50<", "<xmax>1e999<"), "first.xml, line 5: image id first"),
    "no xml of a listed image": (
        voc_set,
        remove("Annotations/first.xml"),
        "Main/train.txt, line 1: there is no .*first.xml",
    ),
    "voc without split": (voc_set, remove("ImageSets/Main/train.txt"), "has no split \"train\", it has \\['val'\\]"),
    "voc image missing": (voc_set, remove("JPEGImages/first.png"), "missing image.*JPEGImages/first.png"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_files_are_named_with_their_line(fault, tmp_path):
    write_set, damage, message = BROKEN[fault]
    folder = write_set(tmp_path / "data")
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        cheap_checks(load_detection_data(folder)).raise_on_errors()
    if "line" in message and "yaml" not in message:
        report = cheap_checks(load_detection_data(folder, allow_errors=True))
        assert str(tmp_path) in next(iter(report.examples.values()))[0]


def test_large_label_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sap_detr_hf.data.label_files.LARGEST_FILE", 300)
    with pytest.raises(ValueError, match=r"/fifth\.xml has more than 300 bytes\."):
        load_detection_data(voc_set(tmp_path))


def test_files_without_partner_are_reported(tmp_path):
    yolo, voc = yolo_set(tmp_path / "yolo"), roboflow_voc(tmp_path / "voc")
    write(yolo / "labels" / "train" / "gone.txt", "0 0.5 0.5 0.1 0.1")
    write(yolo / "labels" / "train" / "classes.txt", "cat\n")
    write_image(voc / "train" / "unlabeled.png", (32, 32))
    assert load_detection_data(yolo).findings.examples == {
        "annotation without image": [str(yolo / "labels" / "train" / "gone.txt")]
    }
    assert load_detection_data(voc).findings.examples == {
        "image without label file": [str(voc / "train" / "unlabeled.png")]
    }


def test_linked_folders_are_read_once(tmp_path):
    folder = yolo_set(tmp_path / "data")
    for kind in ("images", "labels"):
        outside = tmp_path / kind
        (folder / kind / "val").rename(outside)
        (folder / kind / "train" / "linked").symlink_to(outside)
    images = folder / "images" / "train"
    (images / "again").symlink_to(images)
    (images / "above").symlink_to("..")
    (tmp_path / "images" / "itself").symlink_to(tmp_path / "images")
    paths = [os.path.relpath(path, images) for path in walk_images(images)]
    assert paths == ["first.png", "fourth.png", "second.png", "third.png", "linked/fifth.png", "linked/sixth.png"]
    data = load_detection_data(folder)
    assert data.dataset["image_path"][:] == [str(images / path) for path in paths]
    assert [len(row["objects"]["bbox"]) for row in data.dataset] == [2, 1, 2, 0, 2, 1]
    assert not data.findings.counts


def test_image_folders_without_label_folder_are_reported(tmp_path):
    yolo_set(tmp_path, "{}/images", "{}/labels", "train: [train/images, val/images]\nval: val/images\n")
    shutil.move(tmp_path / "val" / "labels", tmp_path / "val" / "label")
    data = load_detection_data(tmp_path)
    where = f"{tmp_path / 'data.yaml'}: there is no folder {tmp_path / 'val' / 'labels'}, for 2 images"
    assert data.findings.examples == {"no folder of labels": [where]}
    assert cheap_checks(data).ok  # there are folders of images without objects


@pytest.mark.parametrize(("side", "changed"), [("xmin", "<xmin>11<"), ("ymin", "<ymin>6<")])
def test_boxes_of_voc_from_0_are_warned_of(tmp_path, side, changed):
    folder = voc_set(tmp_path)
    in_xml(changed, f"<{side}>0.0<")(folder)
    report = full_checks(load_detection_data(folder), progress=False)
    assert report.ok  # and is trained on
    assert report.examples == {"Pascal VOC box from 0": [f"{folder / 'Annotations' / 'first.xml'}, line 5"]}


def test_an_unknown_class_is_named_in_the_evaluation_too(tmp_path):
    folder = yolo_set(tmp_path)
    write(folder / "labels" / "val" / "fifth.txt", "\n7 0.5 0.5 0.1 0.1")
    with pytest.raises(ValueError, match=r"val/fifth\.txt, line 2: image id fifth"):
        ground_truth(load_detection_data(folder, "val"))


def test_every_verb_takes_yolo_and_voc(tmp_path, capsys):
    recipe = write_recipe(tmp_path / "tiny.yaml", epochs=1, evaluation_epochs=1)
    yolo, voc = yolo_set(tmp_path / "yolo"), voc_set(tmp_path / "voc")
    assert run_here(recipe, "--data", yolo, "--output_dir", tmp_path / "run") == 0
    assert '"AP"' in (tmp_path / "run" / "metrics.jsonl").read_text()
    evaluation = [str(tmp_path / "run"), str(yolo / "data.yaml"), "--output", str(tmp_path / "evaluation")]
    assert load_script("evaluate").main([*evaluation, "--workers", "0"]) == 0
    results = json.loads((tmp_path / "evaluation" / "results.json").read_text())
    assert results["images"] == 2
    for folder in (yolo, voc):
        assert load_script("check_data").main([str(folder), "--strict"]) == 0
        assert "no problems found" in capsys.readouterr().out
        shown = ["--output", str(tmp_path / f"shown_{folder.name}"), "--shortest-edge", "64", "--longest-edge", "96"]
        assert load_script("show_data").main([str(folder), *shown]) == 0
    predicted = [str(tmp_path / "run"), str(yolo), "--output", str(tmp_path / "predicted"), "--no-pictures"]
    assert load_script("predict").main(predicted) == 0
    assert len((tmp_path / "predicted" / "detections.jsonl").read_text().splitlines()) == 6
    with pytest.raises(ValueError, match=r"data\.yaml says where its images are"):
        load_detection_data(yolo, images=tmp_path)
