"""Which detections are right: matched with the true boxes, and what each score threshold makes of them."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from pycocotools import mask as mask_api

from .coco_metric import CocoMetric

MATCH_IOU = 0.5
LEAST_SCORE = 0.01  # weaker detections are of no use at any threshold
RIGHT, FALSE, EXCUSED = 1, 0, -1  # what a detection is; excused ones lie in crowd regions


class Mistakes(NamedTuple):
    """Mistakes in one image: true boxes without a detection, and detections without a true box."""

    missed: int
    false: int


class MatchedImage(NamedTuple):
    """Scores (n,) and outcomes (n,) of an image's detections, and the number of its true boxes without crowd."""

    scores: np.ndarray
    outcomes: np.ndarray
    true_boxes: int


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


def match_image(predictions: CocoMetric, image_id: int | str, score: float) -> MatchedImage:
    """Match class by class, the best score first; detections below `score` are left out."""
    true = predictions.truth.of_image(image_id)
    boxes, scores, categories = predictions.detections(image_id)
    kept, outcomes = [np.zeros(0)], [np.zeros(0, dtype=np.int8)]
    for category_id in np.unique(categories[scores >= score]).tolist():
        here = np.flatnonzero((categories == category_id) & (scores >= score))
        here = here[np.argsort(-scores[here], kind="stable")]
        true_here = true.of_category(category_id)
        kept.append(scores[here])
        outcomes.append(_match(boxes[here], true_here.boxes, true_here.crowd))
    return MatchedImage(np.concatenate(kept), np.concatenate(outcomes), int((~true.crowd).sum()))


def _match(detected: np.ndarray, true: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Outcomes (n,) of detections of one class (n, 4) x, y, width, height, in this order."""
    outcomes = np.full(len(detected), FALSE, dtype=np.int8)
    if not len(detected) or not len(true):
        return outcomes
    ious = mask_api.iou(detected.astype(np.float64), true, crowd.astype(np.uint8).tolist())  # (detected, true)
    free = ~crowd
    for number, row in enumerate(ious):
        best = int(np.argmax(np.where(free, row, -1)))
        if free[best] and row[best] >= MATCH_IOU:
            free[best] = False
            outcomes[number] = RIGHT
        elif (row[crowd] >= MATCH_IOU).any():
            outcomes[number] = EXCUSED
    return outcomes
