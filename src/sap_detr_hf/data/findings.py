"""Kinds of errors and warnings about data, and the box check of training, evaluation and `sap-detr check-data`."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# kind -> why training and evaluation refuse the data.
ERRORS = {
    "no boxes": "no image has a box that can be learned, so that AP would not be a number",
    "no annotations": "a list of images without annotations can only be predicted",
    "no categories": "the boxes have no classes",
    "malformed image": "the entry cannot be read",
    "image without file name": "the image cannot be opened",
    "image without size": "width and height in pixels are needed",
    "file name that is not text": "it holds half a character",
    "malformed annotation": "the entry cannot be read",
    "malformed row": "the row cannot be read",
    "malformed category": "an id and a name are needed",
    "category id twice": "two names for one id",
    "missing image": "the file does not exist: name the folder of the images with --images, or correct file_name",
    "ambiguous file name": "it fits several files: correct file_name, or name the folder with --images",
    "broken image": "the file cannot be read",
    "wrong size": "the image has another size than the annotations say",
    "box not finite": "a coordinate is NaN, infinite or too large for float32",
    "area not finite": "NaN, infinite or too large for float32",
    "area out of range": "COCO only counts boxes with an area of 0 to 1e10 square pixels",
    "boxes not in pixels": "all lie in the first pixel: are they shares of the image instead?",
    "unknown category": "the category is not in the data set's list",
    "duplicate image id": "two images have the same id",
    "more boxes than queries": "the model cannot find them all",
}
# kind -> what training and evaluation do with it.
WARNINGS = {
    "zero-area box": "dropped in training; evaluation counts it as COCO does, as a box that cannot be found",
    "box outside the image": "clipped, or dropped where nothing is left; if most are: are they x1, y1, x2, y2?",
    "box in the first pixel": "used as it is: is it a share of the image instead?",
    "Pascal VOC box from 0": "read as if counted from 1, as Pascal VOC does: a pixel too large at the left and top",
    "duplicate box": "the same box and category twice in one image",
    "area far from the box": "AP of small, medium and large boxes sorts by it; training and AP do not use it",
    "duplicate file name": "the same image twice, under two ids",
    "file under another name": "used, because no other file fits",
    "EXIF-rotated image": "shown upright; make sure that the boxes were drawn on the upright image",
    "annotation without image": "left out: the image is not in the list",
    "no folder of labels": "the images whose labels it should hold are used as images without objects",
    "image without label file": "left out: Pascal VOC has an XML of every image, also of one without objects",
    "category without boxes": "nothing to learn it from",
    "category name twice": "two classes that results do not tell apart",
    "category listed twice": "the same id and name: used once",
    "line break in a category name": "replaced by a space",
}
# What keeps a file from being predicted; the boxes play no part there.
IMAGE_LIST_ERRORS = frozenset({"malformed image", "image without file name", "duplicate image id"})
# What plays no part where the images are not opened by the annotation file.
FILE_ERRORS = frozenset({"image without file name", "image without size", "file name that is not text"})
EXAMPLES = 50  # of each kind that are kept
OUTSIDE_TOLERANCE = 1.0  # pixels; annotation tools round
LARGEST_NUMBER = float(np.finfo(np.float32).max)
LARGEST_AREA = 1e10  # the limit of "all" areas in COCOeval


@dataclass
class Findings:
    """Faults of a data set.

    Attributes:
        counts: Kind of fault -> how often.
        examples: Kind of fault -> the first ones, in words.
    """

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, example: str, count: int = 1) -> None:
        """Note a fault of one of the kinds above."""
        self.counts[kind] += count
        examples = self.examples.setdefault(kind, [])
        if len(examples) < EXAMPLES:
            examples.append(example)

    def add_all(self, kind: str, where: np.ndarray, describe: Callable[[int], str]) -> None:
        """Note a fault for every place where the array (n,) is true."""
        places = np.flatnonzero(where).tolist()
        for place in places[:EXAMPLES]:
            self.add(kind, describe(place))
        if len(places) > EXAMPLES:
            self.counts[kind] += len(places) - EXAMPLES

    @property
    def errors(self) -> dict[str, int]:
        """Kinds that training and evaluation refuse -> how often."""
        return {kind: count for kind, count in self.counts.items() if kind in ERRORS}

    @property
    def warnings(self) -> dict[str, int]:
        """Kinds that training and evaluation cope with -> how often."""
        return {kind: count for kind, count in self.counts.items() if kind in WARNINGS}

    def warning_lines(self) -> list[str]:
        """Each kind of warning in a line, with an example."""
        return self._lines(self.warnings, WARNINGS)

    def _lines(self, kinds: Iterable[str], reasons: Mapping[str, str]) -> list[str]:
        return [f"{self.counts[kind]} x {kind} ({reasons[kind]}), e.g. {self.examples[kind][0]}" for kind in kinds]

    def refuse_errors(self, source: Any, kinds: Collection[str] = ERRORS, use: str = "trained on or evaluated") -> None:
        """Raise a ValueError in one sentence where there is an error of these kinds."""
        found = [kind for kind in self.errors if kind in kinds]
        if found:
            lines = "; ".join(self._lines(found, ERRORS))
            raise ValueError(f"{source} cannot be {use}: {lines}. `sap-detr check-data` lists all.")


@dataclass
class Boxes:
    """Annotations of some images as flat arrays.

    Attributes:
        image: (n,) place of each box's image among these images.
        category: (n,) the data set's own category ids.
        boxes: (n, 4) float64 x, y, width, height in pixels.
        areas: (n,) float64 in square pixels.
        crowd: (n,) bool.
        origins: (n,) label file and line, where they were read from such files; for messages.
    """

    image: np.ndarray
    category: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    origins: Sequence[tuple[str, int]] | None = None


def line_name(origin: tuple[str, int]) -> str:
    """A label file and its line, for messages."""
    return f"{origin[0]}, line {origin[1]}"


def label_origins(files: Iterable[str], lines: Iterable[Iterable[int]]) -> list[tuple[str, int]]:
    """Label file and line of each box, from each image's label file and the lines of its boxes."""
    return [(file, line) for file, own in zip(files, lines, strict=True) for line in own]


def check_boxes(
    findings: Findings,
    found: Boxes,
    image_ids: np.ndarray,
    sizes: np.ndarray | None,
    categories: Collection[int] | None,
) -> np.ndarray:
    """Note the faults of these boxes.

    Args:
        image_ids: (images,).
        sizes: (images, 2) width, height in pixels, 0 where unknown; None for all unknown.
        categories: The data set's category ids; None where they are not to be compared.

    Returns:
        (n,) bool: the boxes that training learns.
    """

    def name(box: int) -> str:
        x, y, width, height = found.boxes[box]
        where = "" if found.origins is None else f"{line_name(found.origins[box])}: "
        where += f"image id {image_ids[found.image[box]]}"
        return f"{where}, box x {x:g}, y {y:g}, width {width:g}, height {height:g}"

    finite = (np.abs(found.boxes) <= LARGEST_NUMBER).all(1)
    x, y, w, h = np.where(finite[:, None], found.boxes, 0.0).T
    known = np.ones(len(x), bool) if categories is None else np.isin(found.category, list(categories))
    size = np.zeros((len(image_ids), 2)) if sizes is None else sizes
    width, height = np.where(size > 0, size, np.inf)[found.image].T
    beyond = np.max([-x, -y, x + w - width, y + h - height], axis=0, initial=-np.inf)
    beyond[np.isinf(width)] = -np.inf
    with np.errstate(over="ignore"):  # corners in float32, as training and predictions have them
        low = np.stack([x, y], 1).astype(np.float32)
        high = low + np.stack([w, h], 1).astype(np.float32)
    inside = (np.minimum(high, np.stack([width, height], 1)) > np.maximum(low, 0)).all(1)
    area_finite = np.abs(found.areas) <= LARGEST_NUMBER
    area = np.where(area_finite, found.areas, 0.0)
    # A mask reaches the four sides of its box, so it has about as many pixels as the longer side, and at most a pixel
    # around the box. Shares of the image and other units are far from both.
    far = (area < np.maximum(w, h) / 2) & (area < w * h) | (area > (w + 2) * (h + 2))
    in_range = (area >= 0) & (area <= LARGEST_AREA)
    positive = finite & (high > low).all(1)
    faults = {
        "box not finite": ~finite,
        "zero-area box": finite & ~positive,
        "box outside the image": finite & (beyond > OUTSIDE_TOLERANCE),
        "box in the first pixel": positive & (x >= 0) & (y >= 0) & (x + w <= 1) & (y + h <= 1),
        "duplicate box": _repeated(np.column_stack([found.image, found.category, found.boxes])),
    }
    for kind, where in faults.items():
        findings.add_all(kind, where, name)
    area_faults = {
        "area not finite": finite & ~area_finite,
        "area out of range": finite & area_finite & (positive | (area > 0)) & ~in_range,
        "area far from the box": positive & area_finite & in_range & far,
    }
    for kind, where in area_faults.items():
        findings.add_all(kind, where, lambda box: f"{name(box)}, area {found.areas[box]:g}")
    findings.add_all("unknown category", ~known, lambda box: f"category id {found.category[box]}, {name(box)}")
    return finite & known & inside & ~found.crowd


def _repeated(rows: np.ndarray) -> np.ndarray:
    """(n,) bool: the rows (n, columns) that equal an earlier one."""
    order = np.lexsort(rows.T)  # several times faster than np.unique of rows
    repeated = np.zeros(len(rows), dtype=bool)
    repeated[order[1:]] = (rows[order[1:]] == rows[order[:-1]]).all(1)
    return repeated


def check_image_ids(findings: Findings, image_ids: np.ndarray, name: Callable[[int], str]) -> None:
    """Note image ids (images,) that occur twice; `name` gives the name of the image at a place."""
    _, first, inverse = np.unique(image_ids, return_index=True, return_inverse=True)
    repeated = first[inverse] != np.arange(len(image_ids))
    findings.add_all(
        "duplicate image id",
        repeated,
        lambda place: f"image id {image_ids[place]}: {name(int(first[inverse[place]]))} and {name(place)}",
    )
