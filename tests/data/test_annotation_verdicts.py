"""Each odd data set gets one verdict: from the data check, from training, from evaluation and from prediction."""

import contextlib
import json
import math
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Features, List, Value
from PIL import Image
from project_scripts import load_script

from sap_detr_hf import SapDetrImageProcessorPil
from sap_detr_hf.data.checks import cheap_checks, check_validation
from sap_detr_hf.data.dataset import load_detection_data
from sap_detr_hf.data.samples import DetectionRows
from sap_detr_hf.evaluation.coco_metric import CocoMetric
from sap_detr_hf.evaluation.evaluate import ground_truth
from sap_detr_hf.inference.sources import InputImages
from sap_detr_hf.training.run import check_data

NAN = float("nan")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def picture(path, seed=0, size=(48, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def coco():
    numbers = (1, 2)
    images = [{"id": n, "file_name": f"{n}.png", "width": 48, "height": 32} for n in numbers]
    box = {"bbox": [5, 6, 20, 10], "area": 200, "iscrowd": 0}
    annotations = [{"id": n, "image_id": n, "category_id": n, **box} for n in numbers]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def each(part, **changes):
    """Change every entry of a list; a function gets the entry."""

    def change(content):
        for entry in content[part]:
            entry |= {name: value(entry) if callable(value) else value for name, value in changes.items()}

    return change


def first(part, **changes):
    return lambda content: content[part][0].update(changes)


def words(content):
    for entry in content["images"]:
        entry["id"] = f"img_{entry['id']}"
    for entry in content["annotations"]:
        entry["image_id"] = f"img_{entry['image_id']}"


DEGENERATE = {"image_id": 1, "category_id": 1, "bbox": [5, 6, 0, 10], "area": 0}
# Change of the JSON -> the kind of fault, None for none; "!" before it where prediction is refused too.
CASES = {
    "nothing": (lambda c: None, None),
    "image ids as text": (each("images", id=lambda e: str(e["id"])), None),
    "image ids as words": (words, None),
    "image ids as fractions": (each("images", id=lambda e: e["id"] + 0.5), "!malformed image"),
    "image ids of 65 bits": (each("images", id=lambda e: 2**64 + e["id"]), "!malformed image"),
    "image id twice": (each("images", id=1), "!duplicate image id"),
    "image id null": (first("images", id=None), "!malformed image"),
    "image entry of text": (lambda c: c["images"].append("3.png"), "!malformed image"),
    "width infinite": (first("images", width=float("inf")), "!malformed image"),
    "width missing": (lambda c: c["images"][0].pop("width"), "image without size"),
    "width and height swapped": (each("images", width=32, height=48), "wrong size"),
    "file name null": (first("images", file_name=None), "!image without file name"),
    "file name of a folder": (first("images", file_name="."), "missing image"),
    "file missing": (first("images", file_name="gone.png"), "missing image"),
    "file is a folder": (first("images", file_name="folder.png"), "missing image"),
    "file is a link to nothing": (first("images", file_name="link.png"), "missing image"),
    "file name of 304 letters": (first("images", file_name="x" * 300 + ".png"), "missing image"),
    "file broken": (first("images", file_name="broken.png"), "broken image"),
    "file name of an exporter": (each("images", file_name=lambda e: f"images\\{e['file_name']}"), None),
    "file name in capitals": (each("images", file_name=lambda e: e["file_name"].upper()), "file under another name"),
    "category ids as text": (each("annotations", category_id=lambda e: str(e["category_id"])), None),
    "category ids as fractions": (each("annotations", category_id=1.5), "malformed annotation"),
    "category unknown": (first("annotations", category_id=77), "unknown category"),
    "category id twice": (lambda c: c["categories"].append({"id": 1, "name": "eel"}), "category id twice"),
    "category name null": (first("categories", name=None), "malformed category"),
    "category name in two lines": (first("categories", name="a\nb"), "line break in a category name"),
    "no categories": (lambda c: c.pop("categories"), "no categories"),
    "no annotations": (lambda c: c.pop("annotations"), "no annotations"),
    "annotations empty": (lambda c: c["annotations"].clear(), "no boxes"),
    "all crowd": (each("annotations", iscrowd=1), "no boxes"),
    "iscrowd of text": (each("annotations", iscrowd="0"), None),
    "iscrowd null": (each("annotations", iscrowd=None), None),
    "iscrowd 300": (first("annotations", iscrowd=300), "malformed annotation"),
    "area null": (each("annotations", area=None), None),
    "area NaN": (each("annotations", area=NAN), "area not finite"),
    "area negative": (each("annotations", area=-5), "area out of range"),
    "area as a share": (each("annotations", area=0.1), "area far from the box"),
    "box of text": (each("annotations", bbox=["5", "6", "20", "10"]), None),
    "box NaN": (first("annotations", bbox=[NAN, 1, 2, 3]), "box not finite"),
    "box beyond float32": (first("annotations", bbox=[1, 1, 1e308, 3]), "box not finite"),
    "box null": (first("annotations", bbox=None), "malformed annotation"),
    "box degenerate": (lambda c: c["annotations"].append(DEGENERATE), "zero-area box"),
    "width of 0 in float32": (
        lambda c: c["annotations"].append(DEGENERATE | {"bbox": [5, 6, 1e-30, 10]}),
        "zero-area box",
    ),
    "all widths of 0 in float32": (each("annotations", bbox=[40, 6, 1e-7, 10], area=None), "no boxes"),
    "inside by less than float32": (each("annotations", bbox=[48 - 1e-9, 6, 20, 10], area=200), "no boxes"),
    "boxes as shares": (each("annotations", bbox=[0.1, 0.1, 0.3, 0.5], area=0.15), "boxes not in pixels"),
    "annotation null": (lambda c: c["annotations"].append(None), "malformed annotation"),
}


def write(folder, change, splits=("train", "val")):
    for split in ("train", "val"):
        content = coco()
        if split in splits:
            change(content)
        (folder / f"{split}.json").write_text(json.dumps(content))
    for number in (1, 2):
        picture(folder / "images" / f"{number}.png", number)
    (folder / "images/folder.png").mkdir()
    (folder / "images/link.png").symlink_to("gone.png")
    picture(folder / "images/broken.png")
    (folder / "images/broken.png").write_bytes((folder / "images/broken.png").read_bytes()[:900])


def train(folder, split="train"):
    """What training does with the data before its first step, and with every image."""
    data = load_detection_data(folder, split)
    cheap_checks(data).raise_on_errors()
    rows = DetectionRows(data, SapDetrImageProcessorPil(size={"shortest_edge": 32, "longest_edge": 48}))
    return [rows[number] for number in range(len(rows))]


def evaluate(folder):
    """AP of the true boxes as detections."""
    data = load_detection_data(folder, "val")
    check_validation(data)
    metric = CocoMetric(ground_truth(data).select(data.dataset["image_id"][:]))
    for image_id in metric.truth.image_ids:
        own = metric.truth.of_image(image_id)
        metric.add(image_id, own.boxes, np.ones(len(own.boxes)), own.box_categories)
    json.dumps([*metric.results()])
    return metric.compute().metrics["AP"]


def predict(file):
    """Ids of the images; one that cannot be opened costs only itself."""
    images = list(InputImages([str(file)]))
    for image in images:
        with contextlib.suppress(OSError, ValueError):
            image.load()
    return [image.image_id for image in images]


@pytest.mark.parametrize("case", CASES)
def test_one_verdict_on_a_coco_file(tmp_path, capsys, case):
    change, kind = CASES[case]
    write(tmp_path, change)
    code = load_script("check_data").main([str(tmp_path), "--json", str(tmp_path / "report.json")])
    report = json.loads((tmp_path / "report.json").read_text()) if code < 2 else {}
    printed = capsys.readouterr()
    error = next((line for line in printed.out.splitlines() if line.startswith("  error: ")), None)
    if kind is None or code == 0:
        assert code == 0, printed.out
        assert list(report["splits"]["val"]["warnings"]) == ([] if kind is None else [kind])
        assert len(train(tmp_path)) == 2
        assert math.isfinite(evaluate(tmp_path))
    else:
        refused, name = kind.startswith("!"), kind.removeprefix("!")
        assert code in (1, 2)
        assert name in (error or printed.err)
        with pytest.raises((OSError, ValueError)) as in_training:
            train(tmp_path)
        with pytest.raises(ValueError, match=f"cannot be trained on or evaluated: .*{name}"):
            evaluate(tmp_path)
        assert name in str(in_training.value) or name in ("broken image", "wrong size")  # opened when their turn comes
        if refused:
            with pytest.raises(ValueError, match=rf"cannot be predicted: \d+ x {name}"):
                predict(tmp_path / "val.json")
    if kind is None or not kind.startswith("!"):
        ids = ["img_1", "img_2"] if case == "image ids as words" else [1, 2]
        assert predict(tmp_path / "val.json") == ids


@pytest.mark.parametrize("case", ["file broken", "width and height swapped", "annotations empty", "box NaN"])
def test_validation_data_is_refused_though_training_data_is_fine(tmp_path, case):
    write(tmp_path, CASES[case][0], splits=("val",))
    train(tmp_path)
    data = load_detection_data(tmp_path, "val")
    with pytest.raises(ValueError, match=f'split "val" cannot be trained on or evaluated: .*{CASES[case][1]}'):
        check_validation(data)


def test_training_refuses_other_class_names_in_validation_also_where_they_look_like_defaults(tmp_path):
    write(tmp_path, lambda c: [entry.update(name=f"LABEL_{entry['id'] - 1}") for entry in c["categories"]], ["train"])
    training, validation = (load_detection_data(tmp_path, split) for split in ("train", "val"))
    config = SimpleNamespace(num_queries=9, id2label=training.id2label, category_ids=training.category_ids)
    process = SimpleNamespace(is_main_process=True, process_index=0, num_processes=1)
    assert load_script("check_data").main([str(tmp_path)]) == 1
    with pytest.raises(ValueError, match='category 1 is "cat" in "val" but "LABEL_0" in "train": the same ids must'):
        check_data(process, SimpleNamespace(config=config), training, validation)


def test_training_says_what_the_data_checks_warn_of(tmp_path, capsys):
    def outside(coco):
        coco["annotations"][0]["bbox"] = [1, 1, 9000, 9]

    write(tmp_path, outside, ["train"])
    training, validation = (load_detection_data(tmp_path, split) for split in ("train", "val"))
    paths = training.dataset["image_path"][:]
    validation.dataset = validation.dataset.remove_columns("image_path").add_column("image_path", paths)
    config = SimpleNamespace(num_queries=9, id2label=training.id2label, category_ids=training.category_ids)
    process = SimpleNamespace(is_main_process=True, process_index=0, num_processes=1)
    check_data(process, SimpleNamespace(config=config), training, validation)
    printed = capsys.readouterr().err
    assert "1 x box outside the image (clipped" in printed
    assert f'warning: {len(paths)} of {len(paths)} images of "val" are also in "train"' in printed


def test_processes_share_the_images_of_a_check(tmp_path):
    write(tmp_path, CASES["file broken"][0])
    data = load_detection_data(tmp_path, "val")
    assert check_validation(data, rank=1, processes=2) == []
    with pytest.raises(ValueError, match="broken image"):
        check_validation(data, rank=0, processes=2)


OBJECTS = {"bbox": [[5, 6, 20, 10], [1, 1, 9, 9]], "category": [0, 1]}
# Columns of the second row -> what the sentence says, None where all is fine.
HUB_CASES = {
    "nothing": ({}, None),
    "objects null": ({"objects": None}, "row 1: objects is null"),
    "boxes null": ({"objects": {"bbox": None, "category": None}}, "row 1: objects.bbox is null"),
    "one box null": (
        {"objects": OBJECTS | {"bbox": [None, [1, 1, 9, 9]]}},
        "row 1: an entry of objects.bbox is missing",
    ),
    "five numbers": (
        {"objects": OBJECTS | {"bbox": [[1, 2, 3, 4, 5], [1, 1, 9, 9]]}},
        "row 1: .* has 5 numbers, not 4",
    ),
    "ragged": ({"objects": OBJECTS | {"bbox": [[1, 2], [1, 1, 9, 9]]}}, "row 1: .* has 2 numbers, not 4"),
    "too few categories": (
        {"objects": OBJECTS | {"category": [0]}},
        "row 1: it has 2 boxes, but objects.category has 1",
    ),
    "too few areas": ({"objects": OBJECTS | {"area": [200.0]}}, "row 1: it has 2 boxes, but objects.area has 1"),
    "area null": ({"objects": OBJECTS | {"area": [None, 81.0]}}, None),
    "iscrowd 300": (
        {"objects": OBJECTS | {"iscrowd": [300, 0]}},
        "row 1: an entry of objects.iscrowd is 300.0, not 0 or 1",
    ),
    "category 1.5": ({"objects": OBJECTS | {"category": [1.5, 0]}}, "row 1: .* is 1.5, not a whole number"),
    "class -1": ({"objects": OBJECTS | {"category": [-1, 0]}}, "unknown category .* category id -1"),
    "box NaN": ({"objects": OBJECTS | {"bbox": [[NAN, 1, 2, 3], [1, 1, 9, 9]]}}, "box not finite"),
    "image null": ({"image": None}, "row 1: image is null"),
    "image no image": ({"image": {"bytes": b"no image", "path": None}}, "row 1: .*not an image"),
    "image id null": ({"image_id": None}, "row 1: image_id is missing"),
    "image id of text": ({"image_id": "frame"}, None),
    "image id twice": ({"image_id": "0"}, "duplicate image id .* row 0 and row 1"),
}


@pytest.mark.parametrize("case", HUB_CASES)
def test_one_verdict_on_rows(tmp_path, case):
    changes, message = HUB_CASES[case]
    picture(tmp_path / "a.png")
    stored = {"bytes": (tmp_path / "a.png").read_bytes(), "path": None}
    rows = [
        {"image": stored, "image_id": str(n), "objects": {"area": None, "iscrowd": None, **OBJECTS}} for n in (0, 1)
    ]
    rows[1] |= changes
    number = Value("float64")
    objects = {"bbox": List(List(number)), "category": List(number), "area": List(number), "iscrowd": List(number)}
    features = Features({"image": datasets.Image(), "image_id": Value("string"), "objects": objects})
    saved = datasets.Dataset.from_list(rows, features=features)
    datasets.DatasetDict(train=saved, val=saved).save_to_disk(tmp_path / "hub")
    code = load_script("check_data").main([str(tmp_path / "hub")])
    if message is None:
        assert code == 0
        assert len(train(tmp_path / "hub")) == 2
        assert math.isfinite(evaluate(tmp_path / "hub"))
        return
    assert code == 1
    for use, split in ((train, "train"), (evaluate, "val")):
        with pytest.raises(ValueError, match=f'hub, split "{split}" cannot be .*{message}'):
            use(tmp_path / "hub")


def test_class_names_and_streams(tmp_path):
    picture(tmp_path / "a.png")
    stored = {"bytes": (tmp_path / "a.png").read_bytes(), "path": None}
    objects = {"bbox": List(List(Value("float32"))), "category": List(ClassLabel(names=["cat", "two\nlines"]))}
    features = Features({"image": datasets.Image(), "objects": objects})
    rows = [{"image": stored, "objects": OBJECTS}, {"image": stored, "objects": None}]
    saved = datasets.Dataset.from_list(rows, features=features)
    saved.save_to_disk(tmp_path / "hub")
    data = load_detection_data(tmp_path / "hub", streaming=True)
    assert data.categories == {0: "cat", 1: "two lines"}
    stream = iter(data.dataset)
    assert next(stream)["image_id"] == 0
    with pytest.raises(ValueError, match=r'split "train", row 1: objects is null'):
        next(stream)
    saved.select([]).save_to_disk(tmp_path / "empty")
    with pytest.raises(OSError, match=r'empty, split "train" has no rows'):
        load_detection_data(tmp_path / "empty")
    (tmp_path / "hub/state.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be read as a data set"):
        load_detection_data(tmp_path / "hub")
