import contextlib
import io
import json
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sap_detr_hf.evaluation.coco_evaluator import EVALUATORS, FASTER, ONE_OF_ONE
from sap_detr_hf.evaluation.coco_metric import COCO_METRIC_PATH, METRIC_NAMES, CocoMetric, GroundTruth

IMAGE_IDS = [900100, 17, 139, 285, 632, 724, 785]
CATEGORIES = {1: "person", 18: "dog", 90: "toothbrush", 44: "bottle", 13: "stop sign"}
ABSENT = 13  # a category without any box
EMPTY_IMAGE = 785  # an image without any box


def random_annotations(rng, image_id, count):
    for _ in range(count):
        x, y, w, h = (round(float(v), 2) for v in rng.uniform([0, 0, 4, 4], [400, 300, 240, 180]))
        # The mask area is smaller than the box: size classes must come from it.
        yield {
            "image_id": image_id,
            "category_id": int(rng.choice([c for c in CATEGORIES if c != ABSENT])),
            "bbox": [x, y, w, h],
            "area": w * h * 0.6,
            "iscrowd": int(rng.random() < 0.15),
        }


@pytest.fixture
def annotation_file(tmp_path):
    rng = np.random.default_rng(0)
    annotations = [a for i in IMAGE_IDS if i != EMPTY_IMAGE for a in random_annotations(rng, i, 12)]
    for i, annotation in enumerate(annotations):
        annotation["id"] = 5000 + 3 * i
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in IMAGE_IDS],
        "categories": [{"id": i, "name": name} for i, name in CATEGORIES.items()],
        "annotations": annotations,
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    return path


def jittered_detections(annotation_file, dtype, copies=6):
    """Image id -> (boxes, scores, categories): shifted true boxes, some of a wrong class, some scores equal."""
    rng = np.random.default_rng(1)
    content = json.loads(annotation_file.read_text())
    detections = {}
    for image_id in IMAGE_IDS:
        true = [a for a in content["annotations"] if a["image_id"] == image_id] * copies
        boxes = np.array([a["bbox"] for a in true]).reshape(-1, 4)
        boxes = np.abs(boxes * rng.normal(1, 0.12, boxes.shape))
        scores = np.round(rng.uniform(0.01, 1, len(true)), 2)
        categories = np.array([a["category_id"] for a in true], dtype=np.int64)
        wrong = rng.random(len(true)) < 0.2
        categories[wrong] = rng.choice([*CATEGORIES, 91], wrong.sum())  # 91 is no category of the data
        detections[image_id] = (boxes.astype(dtype), scores.astype(dtype), categories)
    return detections


def filled_metric(annotation_file, detections, evaluator=None):
    metric = CocoMetric(GroundTruth.from_json(annotation_file), evaluator)
    for image_id, (boxes, scores, categories) in detections.items():
        metric.add(image_id, boxes, scores, categories)
    return metric


def official(annotation_file, prediction_file):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotation_file))
        evaluator = COCOeval(truth, truth.loadRes(str(prediction_file)), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


@pytest.fixture(params=EVALUATORS)
def evaluator(request):
    if request.param == FASTER:
        pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed")
    return request.param


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_to_pycocotools_to_the_last_digit(annotation_file, tmp_path, dtype, evaluator):
    detections = jittered_detections(annotation_file, dtype)
    metric = filled_metric(annotation_file, detections, evaluator)
    metric.write_predictions(tmp_path / "predictions.json")
    written = json.loads((tmp_path / "predictions.json").read_text())
    assert [d["bbox"] for d in written] == [b for i in sorted(detections) for b in detections[i][0].tolist()]
    assert [d["score"] for d in written] == [s for i in sorted(detections) for s in detections[i][1].tolist()]
    reference = official(annotation_file, tmp_path / "predictions.json")
    result = metric.compute()
    assert list(result.metrics.values()) == reference.stats.tolist()
    assert 0.05 < result.metrics["AP"] < 0.95  # the comparison is about something
    assert len({round(v, 6) for v in result.metrics.values()}) > 8
    np.testing.assert_array_equal(result.precision, reference.eval["precision"][:, :, :, 0, 2])
    for k, row in enumerate(result.per_class):
        values = reference.eval["precision"][:, :, k, 0, 2]
        if row["category_id"] == ABSENT:
            assert math.isnan(row["AP"])
            assert row["boxes"] == 0
        else:
            assert row["AP"] == np.mean(values[values > -1])
            assert row["AP50"] == np.mean(values[0][values[0] > -1])
    assert [row["category_id"] for row in result.per_class] == sorted(CATEGORIES)


def test_more_than_100_detections_of_a_category(annotation_file, tmp_path, evaluator):
    detections = jittered_detections(annotation_file, np.float64, copies=40)
    assert max(np.unique(c, return_counts=True)[1].max() for _, _, c in detections.values() if len(c)) > 100
    metric = filled_metric(annotation_file, detections, evaluator)
    metric.write_predictions(tmp_path / "predictions.json")
    stats = official(annotation_file, tmp_path / "predictions.json").stats
    assert list(metric.compute().metrics.values()) == stats.tolist()


def random_case(seed):
    """Truth and detections by image id (text or numbers): few or many boxes, crowds, empty images, equal scores."""
    rng = np.random.default_rng(seed)
    ids = [f"street {9 - i % 10}-{i}" if seed % 2 else 2**53 + i for i in range([1, 4, 20][seed % 3])]
    boxes = {i: rng.lognormal(4, 1, (int(rng.integers(0, [3, 12][seed % 2])), 4)) for i in ids}
    annotations, detections = [], {}
    for image_id, true in boxes.items():
        categories = rng.choice([2, 5, 90], len(true))
        for box, category in zip(true, categories, strict=True):
            crowd, area = int(rng.random() < 0.1), float(box[2] * box[3] * 0.7)
            entry = {"image_id": image_id, "category_id": int(category), "bbox": box.tolist()}
            annotations.append({**entry, "area": area, "iscrowd": crowd})
        found = np.concatenate(
            [true * rng.normal(1, 0.07, true.shape) for _ in range(4)] + [rng.lognormal(4, 1, (5, 4))]
        )
        found_categories = np.where(
            rng.random(len(found)) < 0.2, 5, np.append(np.tile(categories, 4), [2, 2, 5, 90, 7])
        )
        if rng.random() < 0.9:
            detections[image_id] = (found, rng.random(len(found)).round([1, 8][seed % 2]), found_categories)
    return GroundTruth.from_annotations(ids, {2: "a", 5: "b", 7: "never", 90: "c"}, annotations), detections


def test_evaluators_agree_to_the_last_digit():
    pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed")
    lone_detections = 0
    for seed in range(24):
        truth, detections = random_case(seed)
        metrics = [CocoMetric(truth, evaluator) for evaluator in EVALUATORS]
        for metric in metrics:
            for image_id, found in detections.items():
                metric.add(image_id, *found)
        official, faster = (metric.compute() for metric in metrics)
        np.testing.assert_equal(faster.metrics, official.metrics)
        np.testing.assert_equal(faster.per_class, official.per_class)
        np.testing.assert_array_equal(faster.precision, official.precision)
        lone_detections += int(np.sum(official.precision == ONE_OF_ONE))
    assert lone_detections > 100  # where faster-coco-eval itself differs


def test_evaluator_is_the_fastest_installed(annotation_file, monkeypatch):
    truth = GroundTruth.from_json(annotation_file)
    monkeypatch.setitem(sys.modules, "faster_coco_eval", SimpleNamespace(__version__="1.10.0"))
    assert CocoMetric(truth).evaluator == FASTER
    monkeypatch.setitem(sys.modules, "faster_coco_eval", SimpleNamespace(__version__="1.7.9"))
    assert CocoMetric(truth).evaluator == "pycocotools"
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    assert CocoMetric(truth).evaluator == "pycocotools"
    with pytest.raises(ValueError, match="`evaluator` = 'coco' must be one of pycocotools, faster-coco-eval"):
        CocoMetric(truth, "coco")


def test_order_of_adding_does_not_matter(annotation_file):
    detections = jittered_detections(annotation_file, np.float32)
    backwards = dict(reversed(detections.items()))
    first, second = (filled_metric(annotation_file, d).compute() for d in (detections, backwards))
    assert first.metrics == second.metrics


def test_categories_can_be_shared_between_processes(annotation_file):
    metric = filled_metric(annotation_file, jittered_detections(annotation_file, np.float32))
    shares = [metric.evaluate_categories([1, 13, 90]), metric.evaluate_categories([18, 44])]
    assert metric.summarize({**shares[0], **shares[1]}).metrics["AP"] == metric.compute().metrics["AP"]


def test_data_without_categories():
    assert math.isnan(CocoMetric(GroundTruth.from_annotations([1, 2], {}, [])).compute().metrics["AP"])


def test_perfect_detections_have_ap_one(annotation_file):
    truth = GroundTruth.from_json(annotation_file)
    metric = CocoMetric(truth)
    for image_id in truth.image_ids:
        one = truth.of_image(image_id)
        metric.add(image_id, one.boxes, np.ones(len(one.boxes)), one.box_categories)
    metrics = metric.compute().metrics
    assert metrics["AP"] == pytest.approx(1.0)
    assert metrics["AR100"] == 1.0
    assert metrics["AR1"] < 1.0


def test_crowd_is_neither_missed_nor_a_mistake(annotation_file):
    truth = GroundTruth.from_json(annotation_file)
    assert truth.crowd.any()
    metric = CocoMetric(truth)
    for image_id in truth.image_ids:
        one = truth.of_image(image_id)
        # Two detections on each crowd region, with the best scores of all, and none of the region counted.
        crowd = np.repeat(np.flatnonzero(one.crowd), 2)
        rows = np.concatenate([crowd, np.flatnonzero(~one.crowd)])
        scores = np.concatenate([np.full(len(crowd), 0.9), np.full(len(rows) - len(crowd), 0.5)])
        metric.add(image_id, one.boxes[rows], scores, one.box_categories[rows])
    assert metric.compute().metrics["AP"] == pytest.approx(1.0)


def test_without_detections_and_without_truth(annotation_file, capfd):
    truth = GroundTruth.from_json(annotation_file)
    nothing_found = CocoMetric(truth)
    assert nothing_found.compute().metrics["AP"] == 0.0
    nothing_found.add(IMAGE_IDS[0], [], [], [])
    assert nothing_found.compute().metrics["AR100"] == 0.0
    assert nothing_found.missing_images() == sorted(IMAGE_IDS[1:])

    nothing_there = CocoMetric(truth.select([EMPTY_IMAGE]))
    nothing_there.add(EMPTY_IMAGE, [[0, 0, 5, 5]], [0.7], [1])
    result = nothing_there.compute()
    assert all(math.isnan(result.metrics[name]) for name in METRIC_NAMES)
    assert capfd.readouterr().out == ""  # pycocotools prints unasked


def test_annotation_ids_play_no_part(annotation_file):
    # pycocotools itself loses the match with an annotation of id 0.
    detections = jittered_detections(annotation_file, np.float64)
    before = filled_metric(annotation_file, detections).compute().metrics
    content = json.loads(annotation_file.read_text())
    for i, annotation in enumerate(content["annotations"]):
        annotation["id"] = i
    annotation_file.write_text(json.dumps(content))
    assert filled_metric(annotation_file, detections).compute().metrics == before


def test_optional_keys_of_annotations():
    truth = GroundTruth.from_annotations([1], {5: "cat"}, [{"image_id": 1, "category_id": 5, "bbox": [1, 2, 30, 40]}])
    assert truth.areas.tolist() == [1200.0]
    assert truth.crowd.tolist() == [False]


def test_annotations_of_unlisted_images_are_ignored(annotation_file, tmp_path):
    content = json.loads(annotation_file.read_text())
    content["images"] = [image for image in content["images"] if image["id"] != 17]
    annotation_file.write_text(json.dumps(content))
    detections = jittered_detections(annotation_file, np.float64)
    del detections[17]
    metric = filled_metric(annotation_file, detections)
    metric.write_predictions(tmp_path / "predictions.json")
    stats = official(annotation_file, tmp_path / "predictions.json").stats
    assert list(metric.compute().metrics.values()) == stats.tolist()


def test_test_images_without_annotations(tmp_path):
    path = tmp_path / "image_info.json"
    path.write_text(json.dumps({"images": [{"id": 3}], "categories": [{"id": 1, "name": "person"}]}))
    metric = CocoMetric(GroundTruth.from_json(path))
    metric.add(3, [[1, 2, 3, 4]], [0.5], [1])
    assert math.isnan(metric.compute().metrics["AP"])
    assert [*metric.results()] == [{"image_id": 3, "category_id": 1, "bbox": [1.0, 2.0, 3.0, 4.0], "score": 0.5}]


def test_rows_give_the_truth_of_the_file(annotation_file):
    content = json.loads(annotation_file.read_text())
    names = {"bbox": "bbox", "category": "category_id", "area": "area", "iscrowd": "iscrowd"}
    rows = [
        {
            "image_id": i,
            "objects": {k: [a[v] for a in content["annotations"] if a["image_id"] == i] for k, v in names.items()},
        }
        for i in IMAGE_IDS
    ]
    detections = jittered_detections(annotation_file, np.float64)
    metric = CocoMetric(GroundTruth.from_rows(rows, CATEGORIES))
    for image_id, found in detections.items():
        metric.add(image_id, *found)
    assert metric.compute().metrics == filled_metric(annotation_file, detections).compute().metrics
    for row in rows:
        del row["objects"]["area"], row["objects"]["iscrowd"]
    assert len(GroundTruth.from_rows(rows).category_names) == len(CATEGORIES) - 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, [], [], []), "image id 4 is not in the annotations"),
        ((17, [[0, 0, 1, 1]], [0.5, 0.4], [1]), "image id 17: 1 boxes, 2 scores and 1 category ids"),
        ((17, [[0, float("nan"), 1, 1]], [0.5], [1]), "image id 17: a detection has a box or score that is NaN"),
        ((17, [[0, 0, 1, 1]], [float("inf")], [1]), "image id 17: a detection has a box or score that is NaN"),
        ((139, [], [], []), "image id 139 were added twice"),
    ],
)
def test_bad_detections(annotation_file, arguments, message):
    metric = CocoMetric(GroundTruth.from_json(annotation_file))
    metric.add(139, [], [], [])
    with pytest.raises(ValueError, match=message):
        metric.add(*arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON: .*line 1"),
        ("[]", "is not COCO JSON"),
        ('{"images": [{"file_name": "a.jpg"}], "categories": []}', "id is missing"),
        ('{"images": [{"id": 1.5}], "categories": []}', "id is 1.5, not a whole number"),
        (
            '{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}], "categories": []}',
            "image id 1: a and b",
        ),
        (
            '{"images": [{"id": 1}], "categories": [{"id": 1, "name": "x"}], '
            '"annotations": [{"image_id": 1, "category_id": 7, "bbox": [0, 0, 1, 1]}]}',
            "unknown category .*category id 7, image id 1",
        ),
    ],
)
def test_bad_annotation_files(tmp_path, text, message):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        GroundTruth.from_json(path)
    assert "broken.json" in str(error.value)


def test_memory_an_image_does_not_grow(annotation_file):
    detections = jittered_detections(annotation_file, np.float32)
    metric = filled_metric(annotation_file, detections)
    kept = sum(array.nbytes for image_id in IMAGE_IDS for array in metric.detections(image_id))
    assert kept == sum(len(scores) for _, scores, _ in detections.values()) * (16 + 4 + 8)


EVALUATE_METRIC = """
import json, sys
import evaluate
metric = evaluate.load(sys.argv[1])
batches, names = json.load(open(sys.argv[2]))
for batch in batches:
    metric.add_batch(predictions=batch["predictions"], references=batch["references"])
print(json.dumps(metric.compute(names={int(k): v for k, v in names.items()})))
"""


def test_evaluate_metric_loads_offline_and_gives_the_same(annotation_file, tmp_path):
    detections = jittered_detections(annotation_file, np.float64)
    metric = filled_metric(annotation_file, detections)
    batches = []
    for image_ids in (IMAGE_IDS[:4], IMAGE_IDS[4:]):
        truths = [metric.truth.of_image(i) for i in image_ids]
        batches.append(
            {
                "predictions": [
                    {"image_id": i, "bbox": b.tolist(), "category": c.tolist(), "score": s.tolist()}
                    for i, (b, s, c) in ((i, detections[i]) for i in image_ids)
                ],
                "references": [
                    {
                        "image_id": i,
                        "bbox": t.boxes.tolist(),
                        "category": t.box_categories.tolist(),
                        "area": t.areas.tolist(),
                        "iscrowd": t.crowd.astype(int).tolist(),
                    }
                    for i, t in zip(image_ids, truths, strict=True)
                ],
            }
        )
    (tmp_path / "batches.json").write_text(json.dumps([batches, CATEGORIES]))
    done = subprocess.run(
        [sys.executable, "-c", EVALUATE_METRIC, COCO_METRIC_PATH, str(tmp_path / "batches.json")],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    result = metric.compute()
    assert {name: found[name] for name in METRIC_NAMES} == result.metrics
    assert [row["name"] for row in found["per_class"]] == [row["name"] for row in result.per_class]
