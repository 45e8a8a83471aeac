"""Checks of a detection data set before time is spent on it, from the annotations alone or with every image opened."""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from tqdm import tqdm

from ..model.image_files import open_image, upright_size
from .dataset import DetectionData, image_name, image_source

# kind -> whether training cannot be right with it ("error") or copes with it ("warning": what it does about it).
ERRORS = {
    "no boxes": "no image has a box that can be learned",
    "missing image": "the file does not exist",
    "broken image": "the file cannot be read",
    "wrong size": "the image has another size than the annotations say",
    "box not finite": "a coordinate is NaN or infinite",
    "boxes not in pixels": "all lie in the first pixel: are they shares of the image instead?",
    "unknown category": "the category is not in the data set's list",
    "duplicate image id": "two images have the same id",
    "more boxes than queries": "the model cannot find them all",
}
WARNINGS = {
    "zero-area box": "dropped in training",
    "box outside the image": "clipped, or dropped where nothing is left; if most are: are they x1, y1, x2, y2?",
    "duplicate box": "the same box and category twice in one image",
    "duplicate file name": "the same image twice, under two ids",
    "EXIF-rotated image": "shown upright; make sure that the boxes were drawn on the upright image",
    "annotation without image": "left out: the image is not in the list",
    "category without boxes": "nothing to learn it from",
    "category name twice": "two classes that results do not tell apart",
}
EXAMPLES = 50  # of each kind that a report keeps
OUTSIDE_TOLERANCE = 1.0  # pixels; annotation tools round
ROWS_AT_ONCE = 10_000
IMAGES_AT_ONCE = 200


@dataclass
class DataReport:
    """What was found in one split.

    Attributes:
        source: The data set, as the user named it, and the split.
        images: Number of images.
        boxes: Number of boxes that training learns: no crowd ones, and of others what lies inside the image.
        crowd: Number of crowd boxes (left out in training).
        images_without_boxes: They are kept as pictures of background.
        boxes_per_category: Name -> such boxes.
        counts: Kind of problem -> how often.
        examples: Kind of problem -> the first ones, in words.
        images_opened: Whether every image was opened too.
    """

    source: str
    images: int = 0
    boxes: int = 0
    crowd: int = 0
    images_without_boxes: int = 0
    boxes_per_category: dict[str, int] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    images_opened: bool = False

    def add(self, kind: str, example: str, count: int = 1) -> None:
        """Note a problem of one of the kinds above."""
        self.counts[kind] += count
        if len(self.examples[kind]) < EXAMPLES:
            self.examples[kind].append(example)

    @property
    def errors(self) -> dict[str, int]:
        """Kinds that make training wrong -> how often."""
        return {kind: count for kind, count in self.counts.items() if kind in ERRORS}

    @property
    def warnings(self) -> dict[str, int]:
        """Kinds that training copes with -> how often."""
        return {kind: count for kind, count in self.counts.items() if kind in WARNINGS}

    @property
    def ok(self) -> bool:
        """Nothing was found that makes training wrong; there may be warnings."""
        return not self.errors

    def raise_on_errors(self) -> None:
        """Raise a ValueError that says what is wrong and where, if anything makes training wrong."""
        if not self.errors:
            return
        lines = [
            f"{kind} ({ERRORS[kind]}): {count}, e.g. {self.examples[kind][0]}" for kind, count in self.errors.items()
        ]
        raise ValueError(
            f"{self.source} cannot be trained on: " + "; ".join(lines) + ". `sap-detr check-data` lists all."
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return {
            "source": self.source,
            "ok": self.ok,
            "images": self.images,
            "images_opened": self.images_opened,
            "boxes": self.boxes,
            "crowd": self.crowd,
            "images_without_boxes": self.images_without_boxes,
            "boxes_per_category": self.boxes_per_category,
            "errors": self.errors,
            "warnings": self.warnings,
            "examples": dict(self.examples),
        }

    def table(self, examples: int = 5) -> str:
        """The report for a terminal, with the first few examples of each kind of problem."""
        lines = [
            self.source,
            f"  {self.images} images, {self.images_without_boxes} of them without boxes"
            + ("" if self.images_opened else " (images not opened)"),
            f"  {self.boxes} boxes and {self.crowd} crowd regions in {len(self.boxes_per_category)} categories",
        ]
        width = max(map(len, self.boxes_per_category), default=0)
        lines += [f"    {name:<{width}} {count:>9}" for name, count in self.boxes_per_category.items()]
        for title, kinds, known in (("error", self.errors, ERRORS), ("warning", self.warnings, WARNINGS)):
            for kind, count in kinds.items():
                lines.append(f"  {title}: {kind}: {count} ({known[kind]})")
                lines += [f"      {example}" for example in self.examples[kind][:examples]]
        if not self.counts:
            lines.append("  no problems found")
        return "\n".join(lines)


def cheap_checks(data: DetectionData, num_queries: int | None = None) -> DataReport:
    """Check everything that can be seen without opening an image; seconds for a data set of COCO's size.

    Args:
        data: One split, not streamed.
        num_queries: The model's queries, if it is known: images with more boxes are then reported.
    """
    source = f'{data.source}, split "{data.split}"' if data.split else data.source
    report = DataReport(source, images=len(data.dataset))
    per_category: Counter[int] = Counter()
    farthest = -np.inf
    for batch in _batches(data):
        per_category.update(_check_boxes(report, batch, data.categories, num_queries))
        corners = batch.boxes[:, :2] + batch.boxes[:, 2:]
        farthest = max(farthest, corners[np.isfinite(corners)].max(initial=-np.inf))
    if 0 < farthest <= 1:
        report.add("boxes not in pixels", f"the largest x + width or y + height is {farthest:g}")
    for number, name in data.categories.items():
        key = name
        if name in report.boxes_per_category:
            key = f"{name} ({number})"
            report.add("category name twice", f'category {number} is "{name}" too')
        report.boxes_per_category[key] = per_category[number]
        if per_category[number] == 0:
            report.add("category without boxes", f'category {number} ("{name}")')
    if report.boxes == 0:
        report.add("no boxes", source)
    if data.unplaced_annotations:
        report.add("annotation without image", str(data.annotation_file), data.unplaced_annotations)
    _check_ids(report, data)
    _check_files_exist(report, data)
    return report


def category_conflicts(training: DetectionData, other: DetectionData) -> list[str]:
    """What keeps a split from being measured with the classes of the training split, in words."""
    conflicts = []
    for number, name in other.categories.items():
        expected = training.categories.get(number)
        if expected is None:
            conflicts.append(f'category {number} ("{name}") of "{other.split}" is not in "{training.split}"')
        elif expected.casefold() != name.casefold():
            conflicts.append(f'category {number} is "{name}" in "{other.split}" but "{expected}" in "{training.split}"')
    return conflicts


def full_checks(
    data: DetectionData, num_queries: int | None = None, workers: int | None = None, progress: bool = True
) -> DataReport:
    """`cheap_checks`, and open every image: broken ones, other sizes than annotated, EXIF orientation.

    Args:
        data: One split, not streamed.
        num_queries: See `cheap_checks`.
        workers: Threads that decode images; default is one for each processor core.
        progress: Show a progress bar on standard error.
    """
    report = cheap_checks(data, num_queries)
    rows = data.dataset.remove_columns("objects")
    bar = tqdm(total=len(rows), desc="images", unit="image", disable=not progress, leave=False)
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool, bar:
        for start in range(0, len(rows), IMAGES_AT_ONCE):
            # In portions: an interrupted check would otherwise first finish the images already handed to the threads.
            portion = range(start, min(start + IMAGES_AT_ONCE, len(rows)))
            for problem in pool.map(lambda index: _check_image(rows[index]), portion):
                bar.update()
                if problem is not None:
                    report.add(*problem)
    report.images_opened = True
    return report


@dataclass
class _Batch:
    """Boxes of some images as flat arrays: `image` (boxes,) is each box's place among these images."""

    image_ids: np.ndarray  # (images,)
    sizes: np.ndarray  # (images, 2) width, height
    image: np.ndarray  # (boxes,)
    boxes: np.ndarray  # (boxes, 4) x, y, width, height
    category: np.ndarray  # (boxes,)
    crowd: np.ndarray  # (boxes,) bool

    def name(self, box: int) -> str:
        x, y, width, height = self.boxes[box]
        return f"image id {self.image_ids[self.image[box]]}, box x {x:g}, y {y:g}, width {width:g}, height {height:g}"


def _batches(data: DetectionData) -> Iterator[_Batch]:
    columns = data.dataset.select_columns(["image_id", "width", "height", "objects"]).with_format("arrow")
    for table in columns.iter(ROWS_AT_ONCE):
        objects = table["objects"].combine_chunks()
        category = objects.field("category")
        lengths = pc.list_value_length(category).to_numpy(zero_copy_only=False)
        flat = objects.field("bbox").flatten().flatten().to_numpy(zero_copy_only=False)
        yield _Batch(
            image_ids=table["image_id"].to_numpy(),
            sizes=np.stack([table["width"].to_numpy(), table["height"].to_numpy()], 1),
            image=np.repeat(np.arange(len(table)), lengths),
            boxes=flat.reshape(-1, 4),
            category=category.flatten().to_numpy(zero_copy_only=False),
            crowd=objects.field("iscrowd").flatten().to_numpy(zero_copy_only=False) != 0,
        )


def _check_boxes(
    report: DataReport, batch: _Batch, categories: dict[int, str], num_queries: int | None
) -> dict[int, int]:
    """Report problems of these images' boxes; the result is the number of boxes to learn of each category id."""
    finite = np.isfinite(batch.boxes).all(1)
    width, height = batch.sizes[batch.image].T
    x, y, w, h = np.where(finite[:, None], batch.boxes, 0.0).T
    beyond = np.max([-x, -y, x + w - width, y + h - height], axis=0, initial=-np.inf)
    known = np.isin(batch.category, list(categories))
    inside = (np.minimum(x + w, width) > np.maximum(x, 0)) & (np.minimum(y + h, height) > np.maximum(y, 0))
    learned = finite & known & inside & ~batch.crowd
    per_image = np.bincount(batch.image[learned], minlength=len(batch.image_ids))
    report.boxes += int(learned.sum())
    report.crowd += int(batch.crowd.sum())
    report.images_without_boxes += int((per_image == 0).sum())
    found: dict[str, np.ndarray] = {
        "box not finite": ~finite,
        "zero-area box": finite & ((w <= 0) | (h <= 0)),
        "box outside the image": finite & (beyond > OUTSIDE_TOLERANCE),
        "duplicate box": _repeated(batch),
    }
    for kind, where in found.items():
        _add_all(report, kind, where, batch.name)
    _add_all(report, "unknown category", ~known, lambda box: f"category id {batch.category[box]}, {batch.name(box)}")
    if num_queries is not None:
        _add_all(
            report,
            "more boxes than queries",
            per_image > num_queries,
            lambda image: f"image id {batch.image_ids[image]}: {per_image[image]} boxes, {num_queries} queries",
        )
    ids, counts = np.unique(batch.category[learned], return_counts=True)
    return dict(zip(ids.tolist(), counts.tolist(), strict=True))


def _add_all(report: DataReport, kind: str, where: np.ndarray, describe: Callable[[int], str]) -> None:
    indices = np.flatnonzero(where)
    for index in indices[:EXAMPLES]:
        report.add(kind, describe(index))
    report.counts[kind] += max(0, len(indices) - EXAMPLES)
    if not report.counts[kind]:
        del report.counts[kind]


def _repeated(batch: _Batch) -> np.ndarray:
    """True for each box that is equal to an earlier one of the same image and category."""
    rows = np.column_stack([batch.image, batch.category, batch.boxes])
    _, first = np.unique(rows, axis=0, return_index=True)
    repeated = np.ones(len(rows), dtype=bool)
    repeated[first] = False
    return repeated


def _check_ids(report: DataReport, data: DetectionData) -> None:
    ids, counts = np.unique(np.asarray(data.dataset["image_id"][:]), return_counts=True)
    for image_id, count in zip(ids[counts > 1], counts[counts > 1], strict=True):
        report.add("duplicate image id", f"image id {image_id}: {count} images", int(count) - 1)


def _check_files_exist(report: DataReport, data: DetectionData) -> None:
    if "image_path" not in data.dataset.column_names:
        return
    listings: dict[str, set[str]] = {}  # one look at each folder is far quicker than one at each file over a network
    seen: set[str] = set()
    for batch in data.dataset.select_columns(["image_path", "image_id"]).iter(ROWS_AT_ONCE):
        for path, image_id in zip(batch["image_path"], batch["image_id"], strict=True):
            folder, name = os.path.split(path)
            if folder not in listings:
                listings[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
            if name not in listings[folder]:
                report.add("missing image", f"{path} (image id {image_id})")
            if path in seen:
                report.add("duplicate file name", f"{path} (image id {image_id})")
            seen.add(path)


def _check_image(row: dict[str, Any]) -> tuple[str, str] | None:
    """Kind and description of what is wrong with an image, None where nothing is."""
    where = f"{image_name(row)} (image id {row['image_id']})"
    source = image_source(row)
    if isinstance(source, str) and not Path(source).exists():
        return None  # already reported
    try:
        size = open_image(source).size
        *_, rotated = upright_size(source)
    except (OSError, ValueError) as error:
        return "broken image", f"{where}: {error}"
    stated = (row["width"], row["height"])
    if size != stated:
        turned = " when upright (EXIF orientation)" if rotated else ""
        return "wrong size", f"{where}: {size[0]} x {size[1]}{turned}, annotated {stated[0]} x {stated[1]}"
    return ("EXIF-rotated image", where) if rotated else None
