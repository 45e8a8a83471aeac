"""COCOeval for the boxes of one category, with pycocotools or faster-coco-eval (the same digits, faster)."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from packaging.version import Version
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params

PYCOCOTOOLS, FASTER = EVALUATORS = ("pycocotools", "faster-coco-eval")
FASTER_VERSION = "1.8"  # the oldest for which the tests compare the numbers
# pycocotools divides by true + false + np.spacing(1), which changes the quotient of a lone first detection only.
ONE_OF_ONE = 1 / (1 + np.spacing(1))


class CategoryCurves(NamedTuple):
    """What COCOeval accumulates of one category; -1 where it has nothing to count."""

    precision: np.ndarray  # (IoU 10, recall 101, area 4, maxDets 3)
    recall: np.ndarray  # (IoU 10, area 4, maxDets 3)

    @classmethod
    def undefined(cls) -> "CategoryCurves":
        """Of a category without boxes."""
        sizes = Params(iouType="bbox")
        shape = (len(sizes.areaRng), len(sizes.maxDets))
        iou, recall = len(sizes.iouThrs), len(sizes.recThrs)
        return cls(-np.ones((iou, recall, *shape)), -np.ones((iou, *shape)))


def installed_evaluator() -> str:
    """The name of the fastest evaluator installed; an older faster-coco-eval, whose numbers differ, does not count."""
    try:
        from faster_coco_eval import __version__
    except ImportError:
        return PYCOCOTOOLS
    return FASTER if Version(__version__) >= Version(FASTER_VERSION) else PYCOCOTOOLS


def evaluate_category(
    true: Sequence[np.ndarray], found: Sequence[np.ndarray], evaluator: str = PYCOCOTOOLS
) -> CategoryCurves:
    """COCOeval on the boxes of one category.

    Args:
        true: images (n,), boxes (n, 4) x, y, width, height in pixels, areas (n,) in square pixels and crowd (n,) bool.
        found: images (m,), boxes (m, 4) and scores (m,) of the detections, in the order of the result file.
        evaluator: one of `EVALUATORS`.
    """
    true_images, true_boxes, areas, crowd = true
    if not len(true_boxes):  # its detections count nowhere
        return CategoryCurves.undefined()
    found_images, found_boxes, scores = found
    # Numbers in the order of the image ids, which may be text. Images without this category change nothing.
    ids, numbers = np.unique(np.concatenate([true_images, found_images]), return_inverse=True)
    rows = {
        "image_id": numbers[: len(true_boxes)].tolist(),
        "bbox": true_boxes.tolist(),
        "area": areas.tolist(),
        "iscrowd": crowd.astype(int).tolist(),
    }
    found_rows = {
        "image_id": numbers[len(true_boxes) :].tolist(),
        "bbox": found_boxes.tolist(),
        "area": [width * height for _, _, width, height in found_boxes.tolist()],
        "score": scores.tolist(),
    }
    datasets = [_coco_dataset(len(ids), each) for each in (rows, found_rows)]
    if evaluator == FASTER:
        return _evaluate_faster(datasets, areas[~crowd])
    with contextlib.redirect_stdout(io.StringIO()):
        official = COCOeval(*(_indexed(COCO(), dataset) for dataset in datasets), "bbox")
        official.evaluate()
        official.accumulate()
    return CategoryCurves(official.eval["precision"][:, :, 0], official.eval["recall"][:, 0])


def _evaluate_faster(datasets: list[dict[str, Any]], areas: np.ndarray) -> CategoryCurves:
    """The same by faster-coco-eval, which gives precision 1 where pycocotools gives `ONE_OF_ONE`.

    That is where the first detection alone is right: precision is 1 up to the recall of one box and less from the
    recall of two boxes on. So precision is also asked for at a recall between the two, for each range of areas.
    """
    from faster_coco_eval import COCO as FasterCOCO
    from faster_coco_eval import COCOeval_faster

    official = Params(iouType="bbox")
    boxes = np.array([np.sum((areas >= low) & (areas <= high)) for low, high in official.areaRng])  # (area,)
    asked = np.concatenate([official.recThrs, 1.5 / np.maximum(boxes, 1)])
    order = np.argsort(asked, kind="stable")
    faster = COCOeval_faster(*(_indexed(FasterCOCO(), dataset) for dataset in datasets), "bbox")
    faster.params.iouThrs, faster.params.recThrs = official.iouThrs, asked[order]
    faster.evaluate()
    faster.accumulate()
    sorted_precision = np.asarray(faster.eval["precision"])[:, :, 0]  # (IoU, asked recall, area, maxDets)
    all_precision = np.empty_like(sorted_precision)
    all_precision[:, order] = sorted_precision
    precision, between = np.split(all_precision, [len(official.recThrs)], axis=1)
    beyond_one = np.stack([between[:, area, area] for area in range(len(boxes))], axis=1)  # (IoU, area, maxDets)
    precision[(precision == 1) & (beyond_one < 1)[:, None]] = ONE_OF_ONE
    return CategoryCurves(precision, np.asarray(faster.eval["recall"])[:, 0])


def _coco_dataset(images: int, columns: dict[str, list[Any]]) -> dict[str, Any]:
    # Ids must start at 1: pycocotools stores the id of the matched box as "matched".
    annotations = [
        {"id": number, "category_id": 1, **dict(zip(columns, row, strict=True))}
        for number, row in enumerate(zip(*columns.values(), strict=True), start=1)
    ]
    return {"images": [{"id": i} for i in range(images)], "categories": [{"id": 1}], "annotations": annotations}


def _indexed(coco: Any, dataset: dict[str, Any]) -> Any:
    coco.dataset = dataset
    coco.createIndex()
    return coco
