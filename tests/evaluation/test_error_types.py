"""Error types by hand-made cases, and the numbers of TIDE's own program."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from sap_detr_hf.evaluation.coco_metric import CocoMetric, GroundTruth
from sap_detr_hf.evaluation.error_report import mistakes_tables, plot_mistakes, write_mistakes
from sap_detr_hf.evaluation.error_types import ERROR_TYPES, KINDS, find_errors

NAMES = {3: "cat", 8: "dog | hound"}
BOX = [0, 0, 40, 40]
FAR = [200, 200, 40, 40]


def moved(box, share):
    """The box moved sideways so far that its IoU with itself is `share`."""
    x, y, width, height = box
    return [x + width * (1 - share) / (1 + share), y, width, height]


def errors_of(true, found, names=NAMES):
    """`DetectionErrors` of one image; true: (box, category, crowd), found: (box, score, category)."""
    annotations = [{"image_id": 1, "bbox": b, "category_id": c, "iscrowd": int(crowd)} for b, c, crowd in true]
    metric = CocoMetric(GroundTruth.from_annotations([1, 2], names, annotations))
    metric.add(1, *([each[part] for each in found] for part in range(3)))
    return find_errors(metric)


# Image, box, category, crowd.
TIDE_TRUTH = [
    (1, [0, 0, 40, 40], 3, False),
    (1, [100, 0, 40, 40], 8, False),
    (1, [110, 10, 40, 40], 3, False),
    (1, [200, 0, 40, 40], 8, False),
    (1, [0, 300, 40, 40], 5, False),
    (1, [60, 300, 40, 40], 3, False),
    (1, [300, 0, 100, 100], 3, True),
    (2, [0, 0, 60, 30], 8, False),
    (2, [5, 5, 60, 30], 8, False),
    (2, [100, 100, 20, 20], 5, False),
    (2, [200, 100, 80, 80], 5, False),
    (2, [0, 200, 50, 50], 3, False),
    (3, [0, 0, 100, 100], 5, True),
]
# Image, box, score, category.
TIDE_FOUND = [
    (1, [2, 0, 40, 40], 0.95, 3),  # right
    (1, [0, 4, 40, 40], 0.90, 3),  # duplicate
    (1, [1, 0, 40, 40], 0.85, 8),  # class
    (1, [104, 2, 40, 40], 0.80, 8),  # right
    (1, [103, 0, 40, 40], 0.75, 3),  # location, though it overlaps more with another class
    (1, [112, 12, 40, 40], 0.70, 8),  # location, though it is on a box of another class
    (1, [215, 0, 40, 40], 0.65, 5),  # both
    (1, [320, 20, 30, 30], 0.60, 3),  # in a crowd region of its class
    (1, [325, 20, 30, 30], 0.55, 8),  # background
    (1, [390, 20, 60, 30], 0.50, 3),  # background: mostly outside the crowd region
    (1, [0, 304, 40, 40], 0.08, 5),  # right
    (1, [64, 300, 40, 40], 0.07, 3),  # right
    (2, [2, 2, 60, 30], 0.99, 8),  # right
    (2, [3, 3, 60, 30], 0.45, 8),  # right
    (2, [4, 4, 60, 30], 0.40, 8),  # duplicate
    (2, [104, 100, 20, 20], 0.35, 3),  # class
    (2, [200, 130, 80, 80], 0.30, 5),  # location
    (2, [205, 100, 80, 80], 0.25, 8),  # class
    (2, [10, 225, 50, 50], 0.20, 8),  # both
    (3, [10, 10, 20, 20], 0.15, 5),  # in a crowd region of its class
    (3, [10, 10, 20, 20], 0.10, 3),  # background
]


def kinds(errors):
    return [KINDS[kind] for kind in errors.kinds]


def counted(**counts):
    return {**dict.fromkeys(ERROR_TYPES, 0), **counts}


@pytest.mark.parametrize(
    ("found", "kind", "missed"),
    [
        ((BOX, 3), "right", 0),
        ((moved(BOX, 0.6), 3), "right", 0),
        ((moved(BOX, 0.4), 3), "location", 0),
        ((moved(BOX, 0.11), 3), "location", 0),
        ((moved(BOX, 0.09), 3), "background", 1),
        ((FAR, 3), "background", 1),
        ((moved(BOX, 0.6), 8), "class", 0),
        ((moved(BOX, 0.4), 8), "both", 1),
        ((moved(BOX, 0.09), 8), "background", 1),
    ],
)
def test_one_detection_and_one_box(found, kind, missed):
    box, category = found
    errors = errors_of([(BOX, 3, False)], [(box, 0.9, category)])
    assert kinds(errors) == [kind]
    expected = counted(missed=missed)
    if kind != "right":
        expected[kind] += 1
    assert errors.counts() == expected


@pytest.mark.parametrize(
    ("crowds", "in_crowds", "ap50", "gains"),
    [
        (False, 0, 0.316557, (0.110317, 0.156078, 0.009351, 0.002947, 0.029978, 0.091859)),
        (True, 2, 0.328854, (0.112840, 0.185054, 0.018702, 0.003929, 0.017680, 0.092802)),
    ],
)
def test_same_numbers_as_tidecv(crowds, in_crowds, ap50, gains):
    """Expected are the counts, AP50 and dAP of tidecv 1.0.1, which also counts the detections in crowd regions."""
    truth = [each for each in TIDE_TRUTH if crowds or not each[3]]
    annotations = [{"image_id": i, "bbox": b, "category_id": c, "iscrowd": int(crowd)} for i, b, c, crowd in truth]
    metric = CocoMetric(GroundTruth.from_annotations([1, 2, 3], {3: "cat", 5: "bee", 8: "dog"}, annotations))
    for image_id in (1, 2, 3):
        metric.add(image_id, *zip(*(each[1:] for each in TIDE_FOUND if each[0] == image_id), strict=True))
    errors = find_errors(metric)
    tide = {"class": 3, "location": 3, "both": 2, "duplicate": 2, "background": 5, "missed": 2}
    assert errors.counts() == tide | {"background": 5 - in_crowds}
    assert errors.average_precision() == pytest.approx(ap50, abs=1e-6)
    assert errors.gains() == pytest.approx(dict(zip(ERROR_TYPES, gains, strict=True)), abs=1e-6)


def test_the_weaker_of_two_is_a_duplicate():
    errors = errors_of([(BOX, 3, False)], [(moved(BOX, 0.8), 0.2, 3), (moved(BOX, 0.6), 0.7, 3)])
    assert errors.scores.tolist() == [0.7, 0.2]  # the better overlap does not count
    assert kinds(errors) == ["right", "duplicate"]
    assert errors.counts() == counted(duplicate=1)


def test_location_goes_before_class():
    errors = errors_of([(BOX, 3, False), (moved(BOX, 0.3), 8, False)], [(BOX, 0.9, 8)])
    assert kinds(errors) == ["location"]
    assert errors.about.tolist() == [1]
    assert errors.counts() == counted(location=1, missed=1)


def test_boxes_without_detections_are_missed_and_images_without_boxes_are_background():
    assert errors_of([(BOX, 3, False), (FAR, 8, False)], []).counts() == counted(missed=2)
    assert errors_of([], [(BOX, 0.9, 3)]).counts() == counted(background=1)


def test_crowd_regions_are_neither_missed_nor_found():
    errors = errors_of([(FAR, 3, True)], [([210, 210, 5, 5], 0.9, 3), ([210, 210, 5, 5], 0.8, 8)])
    assert kinds(errors) == ["background"]  # of the other class
    assert errors.counts() == counted(background=1)


def test_of_an_image_the_100_best_count():
    errors = errors_of([(BOX, 3, False)], [(FAR, 0.5, 3)] * 100 + [(BOX, 0.4, 3)])
    assert errors.counts() == counted(background=100, missed=1)
    assert errors_of([(BOX, 3, False)], [(FAR, 0.5, 3)] * 99 + [(BOX, 0.4, 3)]).counts() == counted(background=99)


def test_a_category_of_the_model_that_the_data_does_not_have():
    assert errors_of([(BOX, 3, False)], [(BOX, 0.9, 77)]).counts() == counted(missed=1)


def test_a_threshold_leaves_the_types_of_better_detections():
    found = [(BOX, 0.9, 8), (moved(BOX, 0.7), 0.6, 3), (moved(BOX, 0.8), 0.3, 3), (FAR, 0.2, 3)]
    errors = errors_of([(BOX, 3, False)], found)
    assert kinds(errors) == ["class", "right", "duplicate", "background"]
    assert kinds(errors.from_score(0.3)) == ["class", "right", "duplicate"]
    assert kinds(errors.from_score(0.7)) == ["class"]
    assert errors.from_score(0.95).counts() == counted(missed=1)


SIZED = [(BOX, 3, False), ([100, 0, 32, 32], 3, False), ([300, 0, 97, 97], 8, False), ([500, 0, 96, 96], 8, False)]


def test_counts_by_size_and_class():
    found = [
        (moved(BOX, 0.3), 0.9, 3),  # location, medium
        ([100, 0, 32, 32], 0.8, 8),  # class, small
        ([300, 0, 90, 97], 0.7, 8),  # right
        ([900, 900, 200, 200], 0.6, 8),  # background, large
    ]
    errors = errors_of(SIZED, found)
    assert errors.counts_by_size() == {
        "small": counted(**{"class": 1}),
        "medium": counted(location=1, missed=1),
        "large": counted(background=1),
    }
    assert errors.counts_by_class(NAMES) == [
        {"category_id": 3, "name": "cat", "boxes": 2, "right": 0, **counted(location=1)},
        {
            "category_id": 8,
            "name": "dog | hound",
            "boxes": 2,
            "right": 1,
            **counted(background=1, missed=1, **{"class": 1}),
        },
    ]


def test_confusion_matrix_counts_each_box_and_detection_once():
    found = [
        (BOX, 0.9, 8),  # a cat found as a dog
        (moved(BOX, 0.9), 0.8, 8),  # and once more
        ([300, 0, 97, 97], 0.7, 8),
        ([300, 0, 97, 90], 0.6, 3),  # a dog that is found already
        (moved([100, 0, 32, 32], 0.3), 0.5, 3),  # too far off
    ]
    matrix = errors_of(SIZED, found).confusion_matrix([3, 8])
    assert matrix.tolist() == [[0, 1, 1], [0, 1, 1], [2, 1, 0]]
    assert matrix[:2].sum() == len(SIZED)
    assert matrix[:, :2].sum() == len(found)


def test_gains_of_mending_one_type():
    true = [(BOX, 3, False), (FAR, 3, False), ([0, 300, 40, 40], 8, False)]
    found = [(BOX, 0.9, 3), (moved(FAR, 0.4), 0.8, 3)]
    errors = errors_of(true, found)
    recall_half = 51 / 101  # precision 1 at recalls 0 to 0.5
    assert errors.average_precision() == pytest.approx(recall_half / 2)  # no dog is found
    assert errors.gains() == pytest.approx(counted(location=(1 - recall_half) / 2, missed=recall_half / 2))

    found = [(BOX, 0.9, 8), (moved(BOX, 0.9), 0.8, 8), (FAR, 0.7, 3)]  # the first becomes a cat, the second goes
    gains = errors_of(true[:2], found).gains()
    assert gains == pytest.approx(counted(**{"class": 1 - recall_half}))

    found = [(FAR, 0.9, 3), (BOX, 0.8, 3), (moved(BOX, 0.9), 0.95, 3)]
    errors = errors_of(true[:1], found)  # right, background, duplicate
    assert errors.average_precision() == pytest.approx(1)
    found = [(FAR, 0.99, 3), (BOX, 0.8, 3)]
    assert errors_of(true[:1], found).gains() == pytest.approx(counted(background=0.5))


def test_a_box_is_mended_by_its_best_error_only():
    found = [(moved(BOX, 0.4), 0.9, 3), (BOX, 0.8, 8)]
    gains = errors_of([(BOX, 3, False)], found).gains()
    assert gains == pytest.approx(counted(location=1))  # without its class error the box would still not be found


def test_ap_is_that_of_coco():
    rng = np.random.default_rng(0)
    true = [([*rng.uniform(0, 300, 2), *rng.uniform(20, 90, 2)], int(rng.choice([*NAMES])), False) for _ in range(40)]
    found = [((np.array(b) * rng.normal(1, 0.05, 4)).tolist(), float(rng.random()), c) for b, c, _ in true]
    annotations = [{"image_id": 1, "bbox": b, "category_id": c} for b, c, _ in true]
    metric = CocoMetric(GroundTruth.from_annotations([1], NAMES, annotations))
    metric.add(1, *([each[part] for each in found] for part in range(3)))
    ap50 = metric.compute().metrics["AP50"]
    assert 0.2 < ap50 < 0.9
    assert find_errors(metric).average_precision() == pytest.approx(ap50, abs=1e-12)
    assert math.isnan(errors_of([], []).average_precision())


def test_report(tmp_path):
    annotations = [{"image_id": 1, "bbox": b, "category_id": c} for b, c, _ in SIZED]
    metric = CocoMetric(GroundTruth.from_annotations([1], NAMES, annotations))
    metric.add(1, [BOX, FAR, FAR], [0.9, 0.8, 0.1], [8, 3, 3])
    mistakes = write_mistakes(tmp_path, metric, 0.5)
    assert json.loads(json.dumps(mistakes, allow_nan=False)) == mistakes
    assert mistakes["all_detections"]["counts"] == counted(background=2, missed=3, **{"class": 1})
    assert mistakes["from_threshold"]["counts"] == counted(background=1, missed=3, **{"class": 1})
    assert mistakes["confusions"] == [
        {"true": "dog | hound", "found": None, "count": 2},
        {"true": "cat", "found": "dog | hound", "count": 1},
        {"true": "cat", "found": None, "count": 1},
        {"true": None, "found": "cat", "count": 1},
    ]
    text = (tmp_path / "mistakes.md").read_text()
    assert text == mistakes_tables(mistakes) + "\n"
    assert "| background | 0.0 | 1 | 2 |" in text
    assert "| medium | 1 | 0 | 0 | 0 | 1 | 1 |" in text
    assert "| cat | 2 | 0 | 0 | 0 | 0 | 0 | 1 | 1 |" in text
    assert "| cat | dog \\| hound | 1 |" in text
    assert "| no object | cat | 1 |" in text
    with Image.open(tmp_path / "mistakes.png") as plot:
        assert plot.size == (1560, 720)


def test_plot_shows_the_matrix(tmp_path):
    mistakes = {"AP50": 0.5, "dAP": {kind: 0.01 * place for place, kind in enumerate(ERROR_TYPES)}, "threshold": 0.4}
    matrix = np.array([[3, 0, 1], [2, 5, 0], [0, 7, 0]])
    bars, cells, _ = plot_mistakes(tmp_path / "plot.png", mistakes, matrix, ["a", "b"]).axes
    assert [bar.get_width() for bar in bars.patches] == pytest.approx(range(len(ERROR_TYPES)))
    assert [label.get_text() for label in cells.get_xticklabels()] == ["a", "b", "missed"]
    assert [label.get_text() for label in cells.get_yticklabels()] == ["a", "b", "no object"]
    shown = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in cells.texts}
    assert shown == {(row, column): str(matrix[row, column]) for row, column in zip(*np.nonzero(matrix), strict=True)}
    assert cells.images[0].get_array().tolist() == [[0.75, 0, 0.25], [2 / 7, 5 / 7, 0], [0, 1, 0]]
