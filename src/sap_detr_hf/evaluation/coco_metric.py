"""Official COCO box AP: COCOeval fed from compact arrays, one category at a time.

Boxes are x, y, width, height in pixels of the original image, ids are the data set's own, everywhere in this file.
"""

import contextlib
import io
import logging
import os
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.cocoeval import COCOeval

from ..data.annotation_writer import write_json_list
from ..data.coco import id_array, parse_image_id, read_boxes, read_coco, standard_objects
from ..data.findings import FILE_ERRORS, Boxes, Findings, check_boxes, check_image_ids, label_origins
from ..files import whole_file
from .coco_evaluator import EVALUATORS, CategoryCurves, evaluate_category, installed_evaluator

# The 12 numbers in the order of COCOeval.stats.
METRIC_NAMES = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large"),
)
# `evaluate.load(COCO_METRIC_PATH)` gives the same metric as an `evaluate.Metric`.
COCO_METRIC_PATH = str(Path(__file__).parent / "coco_detection")
# Places of "area = all" and "100 detections" in the arrays of COCOeval.accumulate: (IoU, recall, class, area, maxDets).
AREA_ALL, DETECTIONS_100 = 0, 2


@dataclass(frozen=True)
class GroundTruth:
    """Annotated boxes of a data set, crowd regions included (COCO matches detections to them without counting them).

    Attributes:
        image_ids: (I,) int64 or text, sorted; images without boxes are part of it.
        category_names: category id -> name, for every category of the data set.
        box_images: (n,) the image id of each box.
        box_categories: (n,) int64, the category id of each box.
        boxes: (n, 4) float64, x, y, width, height in pixels.
        areas: (n,) float64, the annotated (mask) area in pixels, by which COCO sorts into small, medium and large.
        crowd: (n,) bool.
    """

    image_ids: np.ndarray
    category_names: dict[int, str]
    box_images: np.ndarray
    box_categories: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray

    @classmethod
    def from_json(cls, path: str | os.PathLike) -> "GroundTruth":
        """Reads a COCO annotation file; one without `annotations` (test images) gives a truth without boxes.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is no COCO annotation file, or has an error of `data.findings.ERRORS`.
        """
        coco = read_coco(os.fspath(path))
        for kind in ("no annotations", *FILE_ERRORS):  # files of images play no part here
            del coco.findings.counts[kind]
        check_image_ids(coco.findings, coco.image_ids, coco.file_names.__getitem__)
        return cls._checked(coco.image_ids, coco.categories, coco.boxes, coco.findings, os.fspath(path))

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]], names: Mapping[int, str] | None = None) -> "GroundTruth":
        """Reads rows with `image_id` and `objects` {bbox, category, area, iscrowd}, the usual columns of Hub data sets.

        Args:
            rows: a `datasets.Dataset` (only these columns are read) or any iterable of such rows. Of rows made of label
                files, `label_file` and `lines` say in messages where a box stands.
            names: category id -> name; the categories that occur, named by their id, if not given.

        Raises:
            ValueError: a box has a category that is not in `names`, or a row another error of `data.findings.ERRORS`.
        """
        if hasattr(rows, "select_columns"):
            labels = ["label_file", "lines"] if "label_file" in (getattr(rows, "column_names", None) or ()) else []
            rows = rows.select_columns(["image_id", "objects", *labels])  # leaves the pictures undecoded
        image_ids: list[int | str] = []
        annotations: list[dict[str, Any]] = []
        origins: list[tuple[str, int]] = []
        for number, row in enumerate(rows):
            image_ids.append(row["image_id"])
            try:
                objects = standard_objects(row["objects"])
            except ValueError as error:
                raise ValueError(f"row {number} (image id {row['image_id']}): {error}") from error
            for b, c, a, i in zip(*(objects[name] for name in ("bbox", "category", "area", "iscrowd")), strict=True):
                entry = {"image_id": row["image_id"], "category_id": c, "bbox": b, "area": a, "iscrowd": i}
                annotations.append(entry)
            origins += label_origins([row["label_file"]], [row["lines"]]) if "label_file" in row else []
        if names is None:
            names = {category: str(category) for category in sorted({a["category_id"] for a in annotations})}
        return cls.from_annotations(image_ids, names, annotations, origins or None)

    @classmethod
    def from_annotations(
        cls,
        image_ids: Iterable[int | str],
        names: Mapping[int, str],
        annotations: Iterable[Mapping[str, Any]],
        origins: Sequence[tuple[str, int]] | None = None,
    ) -> "GroundTruth":
        """Takes COCO annotation dicts (`image_id`, `category_id`, `bbox`, optional `area` and `iscrowd`).

        `origins` are label file and line of each, for messages, where they are not of a COCO JSON.

        Raises:
            ValueError: an image id is there twice, a category is not in `names`, or another error of
                `data.findings.ERRORS`.
        """
        findings = Findings()
        ids = [parse_image_id(value) for value in image_ids]
        place_of: dict[Hashable, int] = {value: place for place, value in enumerate(ids)}
        boxes = read_boxes([*annotations], place_of, findings, origins=origins)
        categories = {int(category): str(name) for category, name in names.items()}
        check_image_ids(findings, id_array(ids), lambda place: f"image {place}")
        return cls._checked(id_array(ids), categories, boxes, findings, "The truth")

    @classmethod
    def _checked(
        cls, image_ids: np.ndarray, names: dict[int, str], boxes: Boxes, findings: Findings, source: str
    ) -> "GroundTruth":
        check_boxes(findings, boxes, image_ids, None, names)
        findings.refuse_errors(source)
        return cls(
            image_ids=np.sort(image_ids),
            category_names=names,
            box_images=image_ids[boxes.image],
            box_categories=boxes.category,
            boxes=boxes.boxes,
            areas=boxes.areas,
            crowd=boxes.crowd,
        )

    def select(self, image_ids: Iterable[int | str]) -> "GroundTruth":
        """The truth of some of the images.

        Raises:
            ValueError: an image is not part of this truth.
        """
        wanted = np.unique(np.array([*image_ids], dtype=None if self.image_ids.dtype.kind == "U" else np.int64))
        unknown = np.setdiff1d(wanted, self.image_ids)
        if len(unknown):
            raise ValueError(f"image id {unknown[0]} is not in the annotations (nor are {len(unknown) - 1} others)")
        return replace(self, image_ids=wanted, **self._boxes_where(np.isin(self.box_images, wanted)))

    def of_image(self, image_id: int | str) -> "GroundTruth":
        """The truth of one image.

        Raises:
            ValueError: the image is not part of this truth.
        """
        rows = self._rows_by_image.get(image_id)
        if rows is None:
            return self.select([image_id])
        return replace(self, image_ids=np.array([image_id]), **self._boxes_where(rows))

    def of_category(self, category_id: int) -> "GroundTruth":
        """The boxes of one category, with all images."""
        return replace(self, **self._boxes_where(self.box_categories == category_id))

    @cached_property
    def _rows_by_image(self) -> dict[int | str, np.ndarray]:
        """Image id -> places of its boxes, for images with boxes."""
        order = np.argsort(self.box_images, kind="stable")
        images, starts = np.unique(self.box_images[order], return_index=True)
        return dict(zip(images.tolist(), np.split(order, starts[1:]), strict=True)) if len(images) else {}

    def _boxes_where(self, keep: np.ndarray) -> dict[str, Any]:
        return {name: getattr(self, name)[keep] for name in ("box_images", "box_categories", "boxes", "areas", "crowd")}


@dataclass(frozen=True)
class CocoResult:
    """What `CocoMetric.compute` found. Numbers are in 0..1; NaN where COCO has nothing to count (pycocotools: -1).

    Attributes:
        metrics: the 12 official numbers, keys `METRIC_NAMES`.
        per_class: one dict a category: category_id, name, boxes (without crowd) and the 12 numbers of this category.
        precision: (10, 101, classes) interpolated precision at IoU 0.50, 0.55, ... 0.95 and recall 0, 0.01, ... 1, all
            areas, 100 detections an image; -1 for a class without boxes.
    """

    metrics: dict[str, float]
    per_class: list[dict[str, Any]]
    precision: np.ndarray


class CocoMetric:
    """Collects detections image by image and computes COCO AP.

    It keeps three small arrays an image (8 kB for 300 detections in float32), whatever the size of picture or batch.
    `compute` hands COCOeval one category at a time, so that its many small Python objects exist for one category
    only. The numbers are those of pycocotools on the whole file, to the last digit, by either evaluator. The one
    deliberate difference: pycocotools never counts a match with an annotation of id 0 (it takes the id as "matched?");
    here annotation ids play no part.

    Args:
        truth: the annotated boxes; images that never get detections count as images without detections.
        evaluator: "pycocotools" or "faster-coco-eval"; the latter where it is installed, if not given.

    Raises:
        ValueError: there is no such evaluator.
    """

    def __init__(self, truth: GroundTruth, evaluator: str | None = None):
        self.truth = truth
        self.evaluator = installed_evaluator() if evaluator is None else evaluator
        if self.evaluator not in EVALUATORS:
            raise ValueError(f"`evaluator` = {evaluator!r} must be one of {', '.join(EVALUATORS)}")
        self._known_images = set(truth.image_ids.tolist())
        self._detections: dict[int | str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def add(self, image_id: int | str, boxes: Any, scores: Any, category_ids: Any) -> None:
        """Adds the detections of one image; none is fine.

        COCO counts the best 100 of each category of an image. Detections of categories that the truth does not have are
        ignored. Values are kept as they come (float32 stays float32).

        Args:
            boxes: (n, 4) x, y, width, height in pixels of the original image.
            scores: (n,).
            category_ids: (n,) the data set's own ids.

        Raises:
            ValueError: the image is unknown or was added before, the lengths differ, or a number is not finite.
        """
        image_id = _plain_id(image_id)
        if image_id not in self._known_images:
            raise ValueError(f"image id {image_id} is not in the annotations")
        if image_id in self._detections:
            raise ValueError(f"detections of image id {image_id} were added twice")
        boxes = _floats(boxes).reshape(-1, 4)
        scores = _floats(scores)
        categories = np.asarray(category_ids, dtype=np.int64)
        if not len(boxes) == len(scores) == len(categories):
            raise ValueError(
                f"image id {image_id}: {len(boxes)} boxes, {len(scores)} scores and {len(categories)} category ids; "
                "each detection needs one of each"
            )
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise ValueError(f"image id {image_id}: a detection has a box or score that is NaN or infinite")
        self._detections[image_id] = (boxes, scores, categories)

    def detections(self, image_id: int | str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes (n, 4) x, y, width, height, scores (n,) and category ids (n,) of an image; empty if none were added."""
        return self._detections.get(_plain_id(image_id), (np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=np.int64)))

    def missing_images(self) -> list[int | str]:
        """Ids of the truth's images for which `add` was not called."""
        return [image_id for image_id in self.truth.image_ids.tolist() if image_id not in self._detections]

    def results(self) -> Iterator[dict[str, Any]]:
        """The detections in COCO result format, by ascending image id."""
        for image_id in sorted(self._detections):  # type: ignore[type-var]  # all numbers, or all text
            for box, score, category in zip(*(a.tolist() for a in self._detections[image_id]), strict=True):
                yield {"image_id": image_id, "category_id": category, "bbox": box, "score": score}

    def write_predictions(self, path: str | os.PathLike) -> None:
        """Writes the COCO result file (unrounded: reading it back gives the same AP), aside first, then renamed."""
        with whole_file(path) as aside, open(aside, "w", encoding="utf-8") as file:
            write_json_list(file, self.results())
            file.write("\n")

    def compute(self) -> CocoResult:
        """COCO AP and AR of what was added, by the official code."""
        return self.summarize(self.evaluate_categories(self.truth.category_names))

    def evaluate_categories(self, category_ids: Iterable[int]) -> dict[int, CategoryCurves]:
        """The slow part of `compute`, for some categories: processes that hold all detections can share the work."""
        images, boxes, scores, categories = self._all_detections()
        curves = {}
        for category_id in category_ids:
            rows = categories == category_id
            truth = self.truth.of_category(category_id)
            true = (truth.box_images, truth.boxes, truth.areas, truth.crowd)
            curves[category_id] = evaluate_category(true, (images[rows], boxes[rows], scores[rows]), self.evaluator)
        return curves

    def summarize(self, curves: Mapping[int, CategoryCurves]) -> CocoResult:
        """The official numbers from the curves of all categories."""
        if self.truth.crowd.all():
            reason = "every box is a crowd region" if len(self.truth.boxes) else "there are no boxes"
            where = f"in the annotations of the {len(self.truth.image_ids)} images"
            logging.getLogger(__name__).warning(f"AP is not a number: {reason} {where}")
        category_ids = sorted(self.truth.category_names)
        ordered = [curves[category_id] for category_id in category_ids] or [CategoryCurves.undefined()]
        precision = np.stack([curve.precision for curve in ordered], axis=2)  # (IoU, recall, class, area, maxDets)
        recall = np.stack([curve.recall for curve in ordered], axis=1)  # (IoU, class, area, maxDets)
        per_class = [
            {
                "category_id": category_id,
                "name": self.truth.category_names[category_id],
                "boxes": int(np.sum((self.truth.box_categories == category_id) & ~self.truth.crowd)),
                **_official_numbers(precision[:, :, k : k + 1], recall[:, k : k + 1]),
            }
            for k, category_id in enumerate(category_ids)
        ]
        return CocoResult(
            metrics=_official_numbers(precision, recall),
            per_class=per_class,
            precision=precision[:, :, :, AREA_ALL, DETECTIONS_100],
        )

    def _all_detections(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Image ids (n,), boxes (n, 4), scores (n,) and category ids (n,), in the order of `results`."""
        if not self._detections:
            return self.truth.image_ids[:0], np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=np.int64)
        ordered = sorted(self._detections.items())
        images = np.concatenate([np.full(len(scores), image_id) for image_id, (_, scores, _) in ordered])
        boxes, scores, categories = (
            np.concatenate([detections[part] for _, detections in ordered]) for part in range(3)
        )
        return images, boxes, scores, categories


def _official_numbers(precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    """The 12 numbers by COCOeval.summarize, NaN for its -1."""
    evaluator = COCOeval(iouType="bbox")
    evaluator.eval = {"precision": precision, "recall": recall}
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.summarize()
    numbers = (float(number) for number in evaluator.stats)
    return {name: number if number > -1 else float("nan") for name, number in zip(METRIC_NAMES, numbers, strict=True)}


def _plain_id(image_id: Any) -> int | str:
    return str(image_id) if isinstance(image_id, str) else int(image_id)


def _floats(values: Any) -> np.ndarray:
    array = np.asarray(values)
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)
