import json
import multiprocessing
import os
import random
import shutil
import time
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Features, List, Value
from PIL import Image
from project_scripts import load_script
from torchvision.transforms import v2

from sap_detr_hf import SapDetrImageProcessor, SapDetrImageProcessorPil
from sap_detr_hf.data import sources as detection_sources
from sap_detr_hf.data.augmentation import make_augmentation
from sap_detr_hf.data.checks import cheap_checks
from sap_detr_hf.data.classes import check_categories, class_indices
from sap_detr_hf.data.dataset import load_detection_data
from sap_detr_hf.data.samples import DetectionRows, DetectionStream, collate
from sap_detr_hf.demo.digits import make_digits
from sap_detr_hf.evaluation.evaluate import EvaluationImages

CATEGORIES = [{"id": 7, "name": "train"}, {"id": 3, "name": "car"}]
SIZE = {"shortest_edge": 96, "longest_edge": 160}


def annotation(number, image_id, category, bbox, **more):
    return {"id": number, "image_id": image_id, "category_id": category, "bbox": bbox, "iscrowd": 0, **more}


ANNOTATIONS = [
    annotation(1, 10, 7, [10, 20, 30, 40], area=600.0),
    annotation(2, 30, 3, [0.5, 0.25, 20.125, 10], area=100.0),
    annotation(3, 10, 3, [-10, 50, 30, 40], area=1200.0),
    annotation(4, 10, 3, [0, 0, 50, 50], area=2500.0, iscrowd=1),
]
IMAGES = [(10, "a.jpg", 80, 64), (20, "b.jpg", 64, 80), (30, "c.jpg", 120, 60)]


def write_images(folder):
    folder.mkdir(parents=True)
    for number, name, width, height in IMAGES:
        pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)


def coco(annotations=ANNOTATIONS, categories=CATEGORIES):
    images = [{"id": number, "file_name": name, "width": w, "height": h} for number, name, w, h in IMAGES]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def coco_folder(tmp_path):
    """COCO 2017's layout with three images, of which the second has no box."""
    write_images(tmp_path / "images/train2017")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_train2017.json").write_text(json.dumps(coco()))
    return tmp_path


@pytest.fixture
def processor():
    return SapDetrImageProcessorPil(size=SIZE)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def test_rows_hold_what_the_json_says(coco_folder):
    data = load_detection_data(coco_folder)
    rows = data.dataset.to_list()
    assert [(r["image_id"], r["width"], r["height"]) for r in rows] == [(i, w, h) for i, _, w, h in IMAGES]
    assert rows[0]["image_path"] == str(coco_folder / "images/train2017/a.jpg")
    assert rows[0]["objects"] == {
        "bbox": [[10, 20, 30, 40], [-10, 50, 30, 40], [0, 0, 50, 50]],
        "category": [7, 3, 3],
        "area": [600, 1200, 2500],
        "iscrowd": [0, 0, 1],
    }
    assert rows[1]["objects"] == {"bbox": [], "category": [], "area": [], "iscrowd": []}
    assert data.id2label == {0: "car", 1: "train"}
    assert data.category_ids == [3, 7]
    assert data.annotation_file == coco_folder / "annotations/instances_train2017.json"


@pytest.mark.parametrize("layout", ["images/train", "train2017", "images", "train", "named", "json"])
def test_layouts(tmp_path, coco_folder, layout):
    root = tmp_path / "other"
    named = {"named": "pictures", "json": "images/train"}.get(layout, layout)
    shutil.copytree(coco_folder / "images/train2017", root / named)
    (root / "annotations").mkdir()
    file = root / "annotations/instances_train.json"
    file.write_text(json.dumps(coco()))
    options = {"annotations": file, "images": root / named} if layout == "named" else {}
    data = load_detection_data(file if layout == "json" else root, **options)
    assert data.dataset[2]["image_path"] == str(root / named / "c.jpg")


@pytest.mark.parametrize("option", ["data", "annotations"])
@pytest.mark.parametrize(("name", "found"), [("test_clean", ""), ("clean_val", "val"), ("val2017", "val")])
def test_a_named_file_does_not_take_the_images_of_another_split(tmp_path, coco_folder, option, name, found):
    root, images = tmp_path / "other", coco_folder / "images/train2017"
    for split in ("test", "val"):
        shutil.copytree(images, root / split)
    file = root / f"{name}.json"
    file.write_text(json.dumps(coco()))
    data = load_detection_data(
        file if option == "data" else root, "val", annotations=None if option == "data" else file
    )
    assert data.dataset[2]["image_path"] == str(root / found / "c.jpg")
    assert ("missing image" in cheap_checks(data).errors) == (not found)


def test_category_numbering(coco_folder):
    data = load_detection_data(coco_folder, categories="coco91")
    assert data.category_ids is None
    assert len(data.id2label) == 91
    assert (data.id2label[3], data.id2label[7]) == ("car", "train")
    assert class_indices([7, 3, 7], [3, 7]).tolist() == [1, 0, 1]
    assert class_indices([7, 3], None).tolist() == [7, 3]
    with pytest.raises(ValueError, match="Category id 5 is not one"):
        class_indices([5], [3, 7])
    (coco_folder / "annotations/instances_train2017.json").write_text(
        json.dumps(coco([], [{"id": 91, "name": "hairbrush"}]))
    )
    with pytest.raises(ValueError, match=r'Category 91 \("hairbrush"\).*91 slots.*"contiguous"'):
        load_detection_data(coco_folder, categories="coco91")


def test_index_is_built_once_and_again_for_a_changed_file(coco_folder, monkeypatch):
    load_detection_data(coco_folder)
    read = detection_sources._coco_rows
    monkeypatch.setattr(detection_sources, "_coco_rows", lambda *_: pytest.fail("built again"))
    data = load_detection_data(coco_folder)
    assert data.dataset.cache_files  # memory-mapped
    assert data.categories == {7: "train", 3: "car"}
    monkeypatch.setattr(detection_sources, "_coco_rows", read)
    file = coco_folder / "annotations/instances_train2017.json"
    times = file.stat().st_atime, file.stat().st_mtime
    file.write_text(json.dumps(coco()).replace("20.125", "21.125"))  # as long as before
    os.utime(file, times)
    assert load_detection_data(coco_folder).dataset[2]["objects"]["bbox"] == [[0.5, 0.25, 21.125, 10]]


def _load_and_log(folder, cache, log):
    write = detection_sources._write_index

    def slow_write(*arguments):
        with open(log, "a") as file:
            file.write("built\n")
        time.sleep(0.5)
        write(*arguments)

    detection_sources._write_index = slow_write
    data = load_detection_data(folder, cache_dir=cache)
    with open(log, "a") as file:
        file.write(f"{len(data.dataset)} rows\n")


def test_of_several_processes_one_builds(coco_folder, tmp_path):
    context = multiprocessing.get_context("fork")
    arguments = (coco_folder, tmp_path / "cache", tmp_path / "log")
    processes = [context.Process(target=_load_and_log, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert (tmp_path / "log").read_text().split("\n") == ["built", "3 rows", "3 rows", "3 rows", ""]


def _load_and_die(folder, cache):
    datasets.Dataset.save_to_disk = lambda dataset, path: (os.makedirs(path), os._exit(9))
    load_detection_data(folder, cache_dir=cache)


def test_killed_while_writing_the_index(coco_folder, tmp_path):
    process = multiprocessing.get_context("fork").Process(target=_load_and_die, args=(coco_folder, tmp_path / "c"))
    process.start()
    process.join(60)
    assert process.exitcode == 9
    assert len(load_detection_data(coco_folder, cache_dir=tmp_path / "c").dataset) == 3


def test_annotations_of_unlisted_images_are_counted(coco_folder):
    more = [*ANNOTATIONS, annotation(9, 99, 3, [1, 1, 2, 2]), annotation(10, 99, 3, [1, 1, 2, 2])]
    (coco_folder / "annotations/instances_train2017.json").write_text(json.dumps(coco(more)))
    data = load_detection_data(coco_folder)
    assert data.findings.counts["annotation without image"] == 2
    assert len(data.dataset) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", 'no list "images"'),
        (json.dumps({"images": [{"id": 1}], "annotations": []}), 'no list "categories"'),
        (json.dumps({"images": [], "annotations": [], "categories": []}), "lists no images"),
        (json.dumps(coco([{"id": 4, "image_id": 10, "category_id": 3}])), r'annotation \{"id": 4.*bbox'),
        (json.dumps(coco([annotation(5, 10, 3, [1, 2, 3])])), r'annotation \{"id": 5.*bbox has 3 numbers, not 4'),
        (json.dumps(coco([annotation(6, 10, 3, [1, 2, 3, "x"])])), r'annotation \{"id": 6'),
        (json.dumps(coco() | {"images": [{"id": 1, "file_name": "a.jpg"}]}), r'image \{"id": 1.*width'),
    ],
)
def test_malformed_annotation_files(coco_folder, content, message):
    file = coco_folder / "annotations/instances_train2017.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        load_detection_data(coco_folder)
    assert str(file) in str(error.value)


def test_what_is_not_there(coco_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no split "val".*instances_val2017.json'):
        load_detection_data(coco_folder, "val")
    with pytest.raises(FileNotFoundError, match=r"no annotation file .*gone.json"):
        load_detection_data(tmp_path / "gone.json")
    with pytest.raises(FileNotFoundError, match="looked for /no/such/folder"):
        load_detection_data(coco_folder, images="/no/such/folder")
    with pytest.raises(FileNotFoundError, match="is not a local folder and cannot be loaded from the Hub"):
        load_detection_data("nobody/no-such-data-set")
    with pytest.raises(ValueError, match='not "coco80"'):
        load_detection_data(coco_folder, categories="coco80")
    with pytest.raises(ValueError, match=r"boxes of .*instances_train2017.json are read as its format has them"):
        load_detection_data(coco_folder, box_format="xyxy")


def hub_rows(folder):
    """The same data as Hub data sets have it: class numbers with names, images as bytes."""
    number = {3: 0, 7: 1}
    for image_id, name, width, height in IMAGES:
        own = [a for a in ANNOTATIONS if a["image_id"] == image_id]
        objects = {
            "bbox": [[float(v) for v in a["bbox"]] for a in own],
            "category": [number[a["category_id"]] for a in own],
            "area": [a["area"] for a in own],
            "iscrowd": [a["iscrowd"] for a in own],
        }
        image = {"bytes": (folder / name).read_bytes(), "path": name}
        yield {"image": image, "image_id": image_id, "width": width, "height": height, "objects": objects}


@pytest.fixture
def hub_data(coco_folder):
    objects = {
        "bbox": List(List(Value("float32"), length=4)),
        "category": List(ClassLabel(names=["car", "train"])),
        "area": List(Value("float32")),
        "iscrowd": List(Value("bool")),
    }
    sizes = {"image_id": Value("int64"), "width": Value("int32"), "height": Value("int32")}
    features = Features({"image": datasets.Image(), **sizes, "objects": objects})
    rows = list(hub_rows(coco_folder / "images/train2017"))
    return datasets.Dataset.from_list(rows, features=features)


@pytest.mark.parametrize("form", ["saved", "saved dict", "parquet", "streamed parquet"])
def test_hub_columns_give_the_samples_of_the_coco_file(coco_folder, hub_data, tmp_path, processor, form):
    folder = tmp_path / "hub"
    if form == "saved":
        hub_data.save_to_disk(folder)
    elif form == "saved dict":
        datasets.DatasetDict(train=hub_data).save_to_disk(folder)
    else:
        (folder / "data").mkdir(parents=True)
        hub_data.to_parquet(folder / "data/train-00000-of-00001.parquet")
    data = load_detection_data(folder, streaming="streamed" in form)
    assert data.id2label == {0: "car", 1: "train"}
    assert data.category_ids == [0, 1]
    expected = list(DetectionRows(load_detection_data(coco_folder), processor))
    make_samples = DetectionStream if "streamed" in form else DetectionRows
    assert_same_samples(list(make_samples(data, processor)), expected)


def assert_same_samples(samples, expected):
    assert len(samples) == len(expected)
    for sample, other in zip(samples, expected, strict=True):
        assert torch.equal(sample["pixel_values"], other["pixel_values"])
        assert sample["labels"].keys() == other["labels"].keys()
        for name, values in sample["labels"].items():
            assert torch.equal(values, other["labels"][name]), name


def test_saved_data_on_a_read_only_disk(coco_folder, hub_data, tmp_path, processor, monkeypatch):
    hub_data.save_to_disk(tmp_path / "hub")
    before = sorted((tmp_path / "hub").iterdir())
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: "hub" not in str(path) and real(path, mode))
    expected = list(DetectionRows(load_detection_data(coco_folder), processor))
    for _ in range(2):  # written, then read from the cache
        data = load_detection_data(tmp_path / "hub", cache_dir=tmp_path / "cache")
        assert_same_samples(list(DetectionRows(data, processor)), expected)
    assert sorted((tmp_path / "hub").iterdir()) == before
    assert len(list((tmp_path / "cache/sap_detr_hf/columns").iterdir())) == 1


def test_hub_columns_that_are_missing_or_of_another_form(coco_folder, hub_data, tmp_path):
    def as_list(row):
        boxes = [[x, y, x + w, y + h] for x, y, w, h in row["objects"]["bbox"]]
        return {
            "boxes": [{"bbox": b, "category_id": c} for b, c in zip(boxes, row["objects"]["category"], strict=True)]
        }

    other = hub_data.map(as_list).remove_columns(["objects", "width", "height", "image_id"])
    other.rename_column("boxes", "objects").save_to_disk(tmp_path / "hub")
    data = load_detection_data(tmp_path / "hub", box_format="xyxy")
    rows = data.dataset.to_list()
    assert [(row["image_id"], row["width"], row["height"]) for row in rows] == [(0, 80, 64), (1, 64, 80), (2, 120, 60)]
    assert rows[0]["objects"]["bbox"] == [[10, 20, 30, 40], [-10, 50, 30, 40], [0, 0, 50, 50]]
    assert rows[0]["objects"]["area"] == [1200, 1200, 2500]
    assert rows[1]["objects"] == {"bbox": [], "category": [], "area": [], "iscrowd": []}
    assert data.categories == {0: "0", 1: "1"}  # no names in the data set


def test_hub_columns_that_cannot_be_used(hub_data, tmp_path):
    hub_data.remove_columns("objects").save_to_disk(tmp_path / "a")
    with pytest.raises(ValueError, match=r"needs the columns image and objects, it has .*height"):
        load_detection_data(tmp_path / "a")
    datasets.DatasetDict(test=hub_data).save_to_disk(tmp_path / "b")
    with pytest.raises(FileNotFoundError, match=r"no split \"train\", it has \['test'\]"):
        load_detection_data(tmp_path / "b")


def test_categories_of_data_and_model(coco_folder):
    data = load_detection_data(coco_folder)
    check_categories(data, SimpleNamespace(id2label={0: "Car", 1: "train", 2: "bus"}, category_ids=[3, 7, 9]))
    check_categories(data, SimpleNamespace(id2label={0: "LABEL_0", 1: "LABEL_1"}, category_ids=[3, 7]))
    raw = load_detection_data(coco_folder, categories="coco91")
    check_categories(raw, SimpleNamespace(id2label=raw.id2label, category_ids=None))
    with pytest.raises(ValueError, match=r'Category 7 \("train"\) .*not among the model\'s 1 category ids \[3\]'):
        check_categories(data, SimpleNamespace(id2label={0: "car"}, category_ids=[3]))
    with pytest.raises(ValueError, match=r'Category 7 is "train" in .* but "bus" in the model'):
        check_categories(data, SimpleNamespace(id2label={0: "car", 1: "bus"}, category_ids=[3, 7]))
    with pytest.raises(ValueError, match=r'Category 7 \("train"\)'):
        check_categories(data, SimpleNamespace(id2label={0: "a", 1: "b", 2: "c", 3: "car"}, category_ids=None))


def test_labels(coco_folder, processor):
    sample = DetectionRows(load_detection_data(coco_folder), processor)[0]
    assert sample["pixel_values"].shape == (3, 96, 120)
    labels = sample["labels"]
    # Image a is 80 x 64; the second box is clipped to x 0..20, y 50..64; the crowd region is gone.
    assert labels["class_labels"].tolist() == [1, 0]
    expected = torch.tensor([[25 / 80, 40 / 64, 30 / 80, 40 / 64], [10 / 80, 57 / 64, 20 / 80, 14 / 64]])
    assert torch.allclose(labels["boxes"], expected)
    assert torch.allclose(labels["area"], torch.tensor([600.0, 20 * 14]) * 1.5**2)
    assert labels["image_id"].tolist() == [10]
    assert labels["orig_size"].tolist() == [64, 80]
    assert labels["size"].tolist() == [96, 120]
    assert labels["iscrowd"].tolist() == [0, 0]
    with_crowd = DetectionRows(load_detection_data(coco_folder), processor, keep_crowd=True)[0]["labels"]
    assert with_crowd["iscrowd"].tolist() == [0, 0, 1]
    empty = DetectionRows(load_detection_data(coco_folder), processor)[1]["labels"]
    assert empty["boxes"].shape == (0, 4)
    assert empty["class_labels"].dtype == torch.int64


def test_without_augmentation_as_the_image_processor_at_prediction(coco_folder, processor):
    data = load_detection_data(coco_folder, categories="coco91")
    for row, sample in zip(data.dataset, DetectionRows(data, processor), strict=True):
        own = [a for a in ANNOTATIONS if a["image_id"] == row["image_id"]]
        expected = processor(
            images=Image.open(row["image_path"]),
            annotations=[{"image_id": row["image_id"], "annotations": own}],
            return_tensors="pt",
        )
        assert torch.equal(sample["pixel_values"], expected["pixel_values"][0])
        for name in ("class_labels", "boxes", "image_id", "orig_size", "size", "iscrowd"):
            assert torch.allclose(sample["labels"][name], torch.as_tensor(expected["labels"][0][name])), name


@pytest.mark.parametrize("backend", [SapDetrImageProcessor, SapDetrImageProcessorPil])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rescale_factor": 1 / 127.5},
        {"do_rescale": False},
        {"do_normalize": False},
        {"do_normalize": False, "do_rescale": False},
        {"image_mean": [0.5, 0.1, 0.2], "image_std": [1.0, 0.5, 2.0]},
    ],
)
def test_training_and_evaluation_see_equal_pixels(coco_folder, backend, changes):
    processor = backend(do_resize=False, **changes)
    data = load_detection_data(coco_folder)
    training = DetectionRows(data, processor, lambda image, target: (image, target))
    evaluation = EvaluationImages(data.dataset, processor)
    pixels = torch.from_numpy(np.array(Image.open(data.dataset[0]["image_path"]))).permute(2, 0, 1).float()
    if processor.do_rescale:
        pixels = pixels * processor.rescale_factor
    if processor.do_normalize:
        mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
        pixels = (pixels - mean) / std
    assert torch.allclose(training[0]["pixel_values"], pixels, atol=1e-5)
    for index in range(len(data.dataset)):
        assert torch.equal(training[index]["pixel_values"], evaluation[index]["pixel_values"].float())


def test_a_float_image_of_an_augmentation_is_in_0_to_1(coco_folder, processor):
    data = load_detection_data(coco_folder)
    as_float = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    plain = DetectionRows(data, processor, lambda image, target: (image, target))
    floats = DetectionRows(data, processor, lambda image, target: (as_float(image), target))
    assert torch.equal(floats[0]["pixel_values"], plain[0]["pixel_values"])


def test_augmentation_of_a_sample_depends_on_seed_epoch_and_index_alone(tmp_path, processor):
    make_digits(tmp_path / "digits", train=6, val=1, size=(96, 80))
    data = load_detection_data(tmp_path / "digits")

    def samples(workers, epochs, seed=1):
        rows = DetectionRows(data, processor, make_augmentation("released", **SIZE), seed=seed)
        options = {"num_workers": workers, "persistent_workers": workers > 0, "batch_size": 2, "collate_fn": list}
        loader = torch.utils.data.DataLoader(rows, **options)
        result = {}
        for epoch in epochs:
            rows.set_epoch(epoch)
            random.random(), torch.rand(3), np.random.rand()  # what else a run draws does not matter
            result[epoch] = [sample for batch in loader for sample in batch]
        return result

    alone = samples(0, [0, 1])
    with_workers = samples(2, [1, 0])
    for epoch in (0, 1):
        assert_same_samples(with_workers[epoch], alone[epoch])
    for other in (alone[1], samples(0, [0], seed=2)[0]):
        assert any(
            a["pixel_values"].shape != b["pixel_values"].shape or not torch.equal(a["pixel_values"], b["pixel_values"])
            for a, b in zip(alone[0], other, strict=True)
        )


def test_stream_is_shared_among_workers(tmp_path, coco_folder, hub_data, processor):
    for shard in range(3):
        path = tmp_path / f"hub/train-0000{shard}-of-00003.parquet"
        path.parent.mkdir(exist_ok=True)
        hub_data.select([shard]).to_parquet(path)
    data = load_detection_data(tmp_path / "hub", streaming=True)
    stream = DetectionStream(data, processor, make_augmentation("released", **SIZE), seed=3)
    stream.set_epoch(2)
    loader = torch.utils.data.DataLoader(stream, batch_size=1, num_workers=2, collate_fn=list)
    found = {sample["labels"]["image_id"].item(): sample for batch in loader for sample in batch}
    assert sorted(found) == [10, 20, 30]
    alone = {sample["labels"]["image_id"].item(): sample for sample in stream}
    assert_same_samples([found[number] for number in (10, 20, 30)], [alone[number] for number in (10, 20, 30)])


def test_collate_pads_right_and_bottom():
    samples = [
        {"pixel_values": torch.full((3, 4, 6), 1.0), "labels": {"image_id": torch.tensor([1])}},
        {"pixel_values": torch.full((3, 5, 2), 2.0), "labels": {"image_id": torch.tensor([2])}},
    ]
    batch = collate(samples)
    assert batch["pixel_values"].shape == (2, 3, 5, 6)
    assert batch["pixel_mask"].sum((1, 2)).tolist() == [24, 10]
    assert batch["pixel_mask"][1, :5, :2].all()
    assert (batch["pixel_values"][:, 0] == batch["pixel_mask"] * torch.tensor([1, 2]).view(2, 1, 1)).all()
    assert [labels["image_id"].item() for labels in batch["labels"]] == [1, 2]


def test_unreadable_images_are_named(coco_folder, processor):
    folder = coco_folder / "images/train2017"
    (folder / "a.jpg").write_bytes((folder / "a.jpg").read_bytes()[:300])
    (folder / "b.jpg").unlink()
    Image.new("RGB", (60, 120)).save(folder / "c.jpg")
    rows = DetectionRows(load_detection_data(coco_folder), processor)
    with pytest.raises(OSError, match=r"a\.jpg \(image id 10\)"):
        rows[0]
    with pytest.raises(OSError, match=r"b\.jpg \(image id 20\).*No such file"):
        rows[1]
    with pytest.raises(ValueError, match=r"c\.jpg \(image id 30\) is 60 x 120 .* 120 x 60.*check-data"):
        rows[2]


def test_boxes_that_cannot_be_right_are_named(coco_folder, processor):
    wrong = [annotation(1, 10, 3, [float("nan"), 1, 2, 2]), annotation(2, 20, 5, [1, 1, 2, 2])]
    (coco_folder / "annotations/instances_train2017.json").write_text(json.dumps(coco(wrong)))
    rows = DetectionRows(load_detection_data(coco_folder), processor)
    with pytest.raises(ValueError, match=r"a\.jpg \(image id 10\).*not a finite number"):
        rows[0]
    with pytest.raises(ValueError, match=r"b\.jpg \(image id 20\): Category id 5"):
        rows[1]


def test_own_torchvision_augmentation(coco_folder, processor):
    # SanitizeBoundingBoxes drops boxes and class labels, but knows nothing of areas and crowd flags.
    own = v2.Compose([v2.CenterCrop((40, 40)), v2.SanitizeBoundingBoxes(min_size=20), v2.Resize((80, 80))])
    sample = DetectionRows(load_detection_data(coco_folder), processor, own)[0]
    assert sample["pixel_values"].shape == (3, 80, 80)
    labels = sample["labels"]
    assert len(labels["boxes"]) == len(labels["class_labels"]) == len(labels["area"]) == len(labels["iscrowd"]) == 1
    # Box x 10..40, y 20..60 of the 80 x 64 image, seen through the window x 20..60, y 12..52.
    assert torch.allclose(labels["boxes"], torch.tensor([[10 / 40, 24 / 40, 20 / 40, 32 / 40]]))


def test_boxes_that_an_own_augmentation_cut_away_are_dropped(coco_folder, processor):
    labels = DetectionRows(load_detection_data(coco_folder), processor, v2.CenterCrop((20, 20)))[0]["labels"]
    assert labels["class_labels"].tolist() == [1]  # the other box lies left of the window
    assert labels["area"].shape == (1,)


def test_own_augmentation_that_forgets_the_boxes(coco_folder, processor):
    rows = DetectionRows(load_detection_data(coco_folder), processor, lambda image, target: (image.reduce(2), target))
    with pytest.raises(ValueError, match=r"image of \(height, width\) \(32, 40\) with boxes of canvas_size \(64, 80\)"):
        rows[0]


def test_shown_pictures_of_another_run_stay_unless_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    make_digits(tmp_path / "digits", train=3, val=1, size=(96, 96))
    output = tmp_path / "shown"

    def show(*options):
        arguments = [str(tmp_path / "digits"), "--output", str(output), "--shortest-edge", "96", *options]
        return load_script("show_data").main(arguments)

    assert show("--count", "3") == 0
    (output / "notes.txt").write_text("mine")
    assert show("--count", "1") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert len(list(output.iterdir())) == 5
    assert show("--count", "1", "--overwrite") == 0
    assert sorted(path.name for path in output.iterdir()) == ["0000_image_id_1.png", "all.png", "notes.txt"]
