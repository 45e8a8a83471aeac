"""Match detections with ground-truth boxes; count right and wrong ones at each score threshold."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from pycocotools import mask as mask_api

from .coco_metric import CocoMetric, GroundTruth

MATCH_IOU = 0.5
LEAST_SCORE = 0.01  # detections with lower scores are ignored at every threshold
RIGHT, FALSE, EXCUSED = 1, 0, -1  # what a detection is; excused ones lie in crowd regions


class Mistakes(NamedTuple):
    """Mistakes in one image: true boxes without a detection, and detections without a true box."""

    missed: int
    false: int


class MatchedImage(NamedTuple):
    """An image's detections, the best score first, matched with its true boxes.

    Args:
        scores: (n,).
        outcomes: (n,) `RIGHT`, `FALSE` or `EXCUSED`.
        boxes: (n, 4) x, y, width, height in pixels.
        categories: (n,) category ids.
        true: the t true boxes, crowd regions included.
        ious: (n, t) with true boxes of all classes; with a crowd region, the share of the detection inside it.
        matches: (n,) place of the true box that a right detection found; -1 for the others.
    """

    scores: np.ndarray
    outcomes: np.ndarray
    boxes: np.ndarray
    categories: np.ndarray
    true: GroundTruth
    ious: np.ndarray
    matches: np.ndarray

    @property
    def true_boxes(self) -> int:
        """Number of true boxes without crowd regions."""
        return int((~self.true.crowd).sum())


@dataclass(frozen=True)
class ThresholdCurve:
    """Precision, recall and F1 of all classes and images together if detections from a score on count.

    Args:
        scores: (n,) the lowest score that counts, falling.
        precision, recall, f1: (n,) each, at `MATCH_IOU`.
    """

    scores: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray

    def best(self) -> dict[str, float] | None:
        """The threshold of the highest F1, halfway to the next score, with its numbers; None without detections."""
        if not len(self.scores):
            return None
        at = int(self.f1.argmax())
        below = self.scores[at + 1] if at + 1 < len(self.scores) else LEAST_SCORE
        numbers = {"threshold": (self.scores[at] + below) / 2, "precision": self.precision[at]}
        return {name: float(value) for name, value in {**numbers, "recall": self.recall[at], "F1": self.f1[at]}.items()}


def threshold_curve(predictions: CocoMetric) -> ThresholdCurve:
    """What each score threshold makes of all detections that were added to a metric."""
    matched = [match_image(predictions, image_id, LEAST_SCORE) for image_id in predictions.truth.image_ids]
    scores = np.concatenate([each.scores for each in matched] or [np.zeros(0)])
    outcomes = np.concatenate([each.outcomes for each in matched] or [np.zeros(0)])
    order = np.argsort(-scores, kind="stable")
    scores, outcomes = scores[order], outcomes[order]
    right, false = np.cumsum(outcomes == RIGHT), np.cumsum(outcomes == FALSE)
    last = np.append(scores[1:] != scores[:-1], True)[: len(scores)]  # of equal scores, all count or none
    scores, right, false = scores[last], right[last], false[last]
    precision = right / np.maximum(right + false, 1)
    recall = right / max(sum(each.true_boxes for each in matched), 1)
    return ThresholdCurve(scores, precision, recall, 2 * precision * recall / np.maximum(precision + recall, 1e-9))


def count_mistakes(predictions: CocoMetric, image_id: int | str, score: float) -> Mistakes:
    """Mistakes in one image if detections of at least this score count."""
    matched = match_image(predictions, image_id, score)
    return Mistakes(matched.true_boxes - int((matched.outcomes == RIGHT).sum()), int((matched.outcomes == FALSE).sum()))


def match_image(predictions: CocoMetric, image_id: int | str, score: float, most: int | None = None) -> MatchedImage:
    """Match class by class, the best score first.

    Left out are detections of categories that the truth does not have, those below `score` and those after the `most`
    best.
    """
    true = predictions.truth.of_image(image_id)
    boxes, scores, categories = predictions.detections(image_id)
    best = np.argsort(-scores, kind="stable")
    best = best[np.isin(categories[best], [*true.category_names])][:most]
    best = best[scores[best] >= score]
    boxes, scores, categories = boxes[best], scores[best], categories[best]
    ious = np.zeros((len(boxes), len(true.boxes)))
    if ious.size:
        ious = mask_api.iou(boxes.astype(np.float64), true.boxes, true.crowd.astype(np.uint8).tolist())
    same_class_ious = ious * (categories[:, None] == true.box_categories)
    outcomes, matches = _match(same_class_ious, true.crowd)
    return MatchedImage(scores, outcomes, boxes, categories, true, ious, matches)


def _match(ious: np.ndarray, crowd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes (n,) and matched true boxes (n,), -1 for none, of detections in this order.

    Args:
        ious: (n, true) of each detection with the true boxes of its class, 0 for the others.
        crowd: (true,) bool.
    """
    outcomes = np.full(len(ious), FALSE, dtype=np.int8)
    matches = np.full(len(ious), -1)
    free = ~crowd
    for number in np.flatnonzero((ious >= MATCH_IOU).any(axis=1)):
        row = ious[number]
        best = int(np.argmax(np.where(free, row, -1)))
        if free[best] and row[best] >= MATCH_IOU:
            free[best] = False
            outcomes[number], matches[number] = RIGHT, best
        elif (row[crowd] >= MATCH_IOU).any():
            outcomes[number] = EXCUSED
    return outcomes, matches
