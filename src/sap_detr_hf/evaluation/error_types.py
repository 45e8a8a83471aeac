"""Why detections are wrong: TIDE's error types (Bolya et al., ECCV 2020, arXiv 2008.08115) and the confusion matrix."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .coco_metric import CocoMetric
from .mistakes import EXCUSED, MATCH_IOU, RIGHT, MatchedImage, match_image

BACKGROUND_IOU = 0.1  # TIDE's; its foreground IoU is `MATCH_IOU`
DETECTIONS = 100  # the best of an image, over all classes, as in TIDE
KINDS = ("right", "class", "location", "both", "duplicate", "background")  # of a detection
RIGHT_KIND, CLASS, LOCATION, BOTH, DUPLICATE, BACKGROUND = range(len(KINDS))
MISSED = len(KINDS)
ERROR_TYPES = (*KINDS[1:], "missed")
SIZES = {"small": 32**2, "medium": 96**2, "large": np.inf}  # largest area in square pixels, as in COCO
RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class DetectionErrors:
    """Detections of a data set with error types, and its true boxes; crowd regions and detections in them left out.

    A false detection is, the first that holds, by its IoU with the true boxes of its image: a *location* error (its
    class, IoU 0.1 to 0.5), a *class* error (another class, IoU at least 0.5), a *duplicate* (its class, IoU at least
    0.5, but a better detection found that box), *background* (IoU at most 0.1 with all) or *both* (class and location
    wrong). A true box is *missed* if neither a right detection nor a class or location error is about it.

    TIDE's program also gives types to detections in crowd regions, which are neither right nor wrong: not so here.

    Attributes:
        scores, categories, areas: (n,) of the detections, the best of an image first; areas of the boxes, in pixels.
        kinds: (n,) places in `KINDS`.
        about: (n,) the true box that a detection found or, with the right class or location, would have; -1 for none.
        true_categories, true_areas: (t,) of the true boxes; areas as annotated, in pixels.
    """

    scores: np.ndarray
    categories: np.ndarray
    areas: np.ndarray
    kinds: np.ndarray
    about: np.ndarray
    true_categories: np.ndarray
    true_areas: np.ndarray

    def from_score(self, score: float) -> "DetectionErrors":
        """Without the detections below a score: types do not depend on weaker detections, but more boxes are missed."""
        kept = self.scores >= score
        names = ("scores", "categories", "areas", "kinds", "about")
        return replace(self, **{name: getattr(self, name)[kept] for name in names})

    def found(self) -> np.ndarray:
        """(t,) bool: the true boxes with a right detection."""
        return _marked(self.about[self.kinds == RIGHT_KIND], len(self.true_areas))

    def missed(self) -> np.ndarray:
        """(t,) bool: the true boxes that no right detection and no class or location error is about."""
        return ~_marked(self.about[self.about >= 0], len(self.true_areas))

    def counts(self) -> dict[str, int]:
        """Errors of each type."""
        return self._counted(*self._errors()[:1])

    def counts_by_size(self) -> dict[str, dict[str, int]]:
        """Errors of each type for each of `SIZES`: the area of the true box they are about, else of the detection."""
        kinds, _, areas = self._errors()
        places = np.searchsorted([*SIZES.values()], areas)
        return {size: self._counted(kinds[places == place]) for place, size in enumerate(SIZES)}

    def counts_by_class(self, names: Mapping[int, str]) -> list[dict[str, Any]]:
        """A dict a category: its id, name, true boxes, right detections, and the errors of its detections and boxes."""
        kinds, categories, _ = self._errors()
        right = self.categories[self.kinds == RIGHT_KIND]
        return [
            {
                "category_id": category_id,
                "name": name,
                "boxes": int(np.sum(self.true_categories == category_id)),
                "right": int(np.sum(right == category_id)),
                **self._counted(kinds[categories == category_id]),
            }
            for category_id, name in sorted(names.items())
        ]

    def confusion_matrix(self, category_ids: list[int]) -> np.ndarray:
        """(classes + 1, classes + 1) counts; rows: true classes, then no object; columns: found classes, then missed.

        Each true box stands in its row once: in the column of the class it was found as, by a right detection or else
        by the best class error, or under missed. Each detection stands in its column once: in the last row if it found
        no box, or a box that a better detection found.
        """
        nothing = len(category_ids)
        place = {category_id: number for number, category_id in enumerate(category_ids)}
        columns = np.array([place[category] for category in self.categories.tolist()], dtype=np.int64)
        rows = np.full(len(columns), nothing)
        true_rows = np.array([place[category] for category in self.true_categories.tolist()], dtype=np.int64)
        finders = (self.kinds == RIGHT_KIND) | self._best_of_boxes(self.kinds == CLASS)
        rows[finders] = true_rows[self.about[finders]]
        missed = true_rows[~_marked(self.about[finders], len(true_rows))]
        matrix = np.zeros((nothing + 1, nothing + 1), dtype=np.int64)
        np.add.at(matrix, (np.append(rows, missed), np.append(columns, np.full(len(missed), nothing))), 1)
        return matrix

    def average_precision(self) -> float:
        """COCO's AP at IoU 0.5, 0 to 1, of these detections; NaN without true boxes."""
        return _average_precision(self.scores, self.categories, self.kinds == RIGHT_KIND, self.true_categories)

    def gains(self) -> dict[str, float]:
        """TIDE's dAP: what AP at IoU 0.5 gains, 0 to 1, if all errors of one type are mended and no others.

        A class or location error becomes right if it is the best detection of a box that is not found, and is else
        removed, as duplicates, background and both are; missed boxes are no longer counted.
        """
        now = self.average_precision()
        mended = {kind: self._average_precision_without(number) for number, kind in enumerate(ERROR_TYPES, start=1)}
        return {kind: max(ap - now, 0.0) for kind, ap in mended.items()}

    def _average_precision_without(self, kind: int) -> float:
        if kind == MISSED:
            true_categories = self.true_categories[~self.missed()]
            return _average_precision(self.scores, self.categories, self.kinds == RIGHT_KIND, true_categories)
        mended = self._best_of_boxes(np.isin(self.kinds, (CLASS, LOCATION))) & (self.kinds == kind)
        right = (self.kinds == RIGHT_KIND) | mended
        categories = self.categories.copy()
        categories[mended] = self.true_categories[self.about[mended]]
        kept = right | (self.kinds != kind)
        return _average_precision(self.scores[kept], categories[kept], right[kept], self.true_categories)

    def _best_of_boxes(self, candidates: np.ndarray) -> np.ndarray:
        """(n,) bool: of these detections, the best about each true box that no right detection found."""
        places = np.flatnonzero(candidates)
        places = places[~self.found()[self.about[places]]]
        _, first = np.unique(self.about[places], return_index=True)
        return _marked(places[first], len(candidates))

    def _errors(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Types, categories and areas (e,) of all errors: false detections, then missed boxes."""
        false, missed = self.kinds != RIGHT_KIND, self.missed()
        own_areas = np.append(self.true_areas, 0.0)[self.about]  # the last where there is none
        areas = np.where(self.about >= 0, own_areas, self.areas)
        return (
            np.append(self.kinds[false], np.full(missed.sum(), MISSED)),
            np.append(self.categories[false], self.true_categories[missed]),
            np.append(areas[false], self.true_areas[missed]),
        )

    @staticmethod
    def _counted(kinds: np.ndarray) -> dict[str, int]:
        return dict(zip(ERROR_TYPES, np.bincount(kinds, minlength=MISSED + 1)[1:].tolist(), strict=True))


def find_errors(predictions: CocoMetric) -> DetectionErrors:
    """Types of the `DETECTIONS` best detections of each image; categories that the truth does not have are left out."""
    parts, first = [], 0
    for image_id in predictions.truth.image_ids.tolist():
        image = match_image(predictions, image_id, 0.0, DETECTIONS)
        parts.append(_errors_of_image(image, first))
        first += image.true_boxes
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return DetectionErrors(*columns)


def _errors_of_image(image: MatchedImage, first: int) -> tuple[np.ndarray, ...]:
    """The arrays of `DetectionErrors` for one image, whose true boxes without crowd are numbered from `first` on."""
    plain = ~image.true.crowd
    counted = image.outcomes != EXCUSED
    ious = image.ious[counted][:, plain]  # (n, t)
    categories, true_categories = image.categories[counted], image.true.box_categories[plain]
    places = np.cumsum(plain) - 1  # of the true boxes among those without crowd
    right = image.outcomes[counted] == RIGHT
    found = places[image.matches[counted][right]]
    kinds = np.full(len(ious), BACKGROUND)
    about = np.full(len(ious), -1)
    if ious.size:
        same_class = categories[:, None] == true_categories
        same, other = ious * same_class, ious * ~same_class
        taken = same * _marked(found, len(true_categories))
        conditions = (
            (right, RIGHT_KIND),
            ((same.max(axis=1) >= BACKGROUND_IOU) & (same.max(axis=1) <= MATCH_IOU), LOCATION),
            (other.max(axis=1) >= MATCH_IOU, CLASS),
            (taken.max(axis=1) >= MATCH_IOU, DUPLICATE),
            (ious.max(axis=1) <= BACKGROUND_IOU, BACKGROUND),
        )
        kinds = np.select([condition for condition, _ in conditions], [kind for _, kind in conditions], BOTH)
        about[kinds == LOCATION] = same.argmax(axis=1)[kinds == LOCATION]
        about[kinds == CLASS] = other.argmax(axis=1)[kinds == CLASS]
        about[right] = found
    about[about >= 0] += first
    areas = image.boxes[counted][:, 2].astype(np.float64) * image.boxes[counted][:, 3]
    return image.scores[counted], categories, areas, kinds, about, true_categories, image.true.areas[plain]


def _average_precision(
    scores: np.ndarray, categories: np.ndarray, right: np.ndarray, true_categories: np.ndarray
) -> float:
    """The mean over the classes with true boxes of the precision, made monotonic, at 101 recalls."""
    order = np.argsort(-scores, kind="stable")
    categories, right = categories[order], right[order]
    precisions = []
    for category, boxes in zip(*np.unique(true_categories, return_counts=True), strict=True):
        true_so_far = np.cumsum(right[categories == category])
        precision = true_so_far / np.arange(1, len(true_so_far) + 1)
        monotonic = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
        precisions.append(monotonic[np.searchsorted(true_so_far / boxes, RECALLS, side="left")].mean())
    return float(np.mean(precisions)) if precisions else float("nan")


def _marked(places: np.ndarray, length: int) -> np.ndarray:
    """(length,) bool: true at these places."""
    marks = np.zeros(length, dtype=bool)
    marks[places] = True
    return marks
