"""Checks of a detection data set before training, from the annotations alone or with every image opened."""

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pyarrow.compute as pc
from tqdm import tqdm

from ..model.image_files import open_image, upright_size
from .dataset import DetectionData
from .findings import ERRORS, WARNINGS, Boxes, Findings, check_boxes, check_image_ids, label_origins
from .image_paths import file_names
from .samples import image_name
from .sources import image_source

ROWS_AT_ONCE = 10_000
IMAGES_AT_ONCE = 200


@dataclass(kw_only=True)
class DataReport(Findings):
    """What was found in one split, beside its faults.

    Attributes:
        source: The data set, as the user named it, and the split.
        boxes: Number of boxes that training learns: no crowd ones, and of others what lies inside the image.
        crowd: Number of crowd boxes (left out in training).
        images_without_boxes: They are kept as background images.
        boxes_per_category: Name -> such boxes.
        images_opened: Whether every image was opened too.
    """

    source: str
    images: int = 0
    boxes: int = 0
    crowd: int = 0
    images_without_boxes: int = 0
    boxes_per_category: dict[str, int] = field(default_factory=dict)
    images_opened: bool = False

    @property
    def ok(self) -> bool:
        """Nothing was found that makes training or AP wrong; there may be warnings."""
        return not self.errors

    def raise_on_errors(self) -> None:
        """Raise a ValueError that says what is wrong and where, if there is an error."""
        self.refuse_errors(self.source)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        names = ["source", "ok", "images", "images_opened", "boxes", "crowd", "images_without_boxes"]
        names += ["boxes_per_category", "errors", "warnings", "examples"]
        return {name: getattr(self, name) for name in names}

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
        return "\n".join([*lines, *(self.problems(examples) or ["  no problems found"])])

    def problems(self, examples: int = 5) -> list[str]:
        """The lines of the table that say what was found."""
        lines = []
        for title, kinds, known in (("error", self.errors, ERRORS), ("warning", self.warnings, WARNINGS)):
            for kind, count in kinds.items():
                lines.append(f"  {title}: {count} x {kind} ({known[kind]})")
                lines += [f"      {example}" for example in self.examples[kind][:examples]]
        return lines


def cheap_checks(data: DetectionData, num_queries: int | None = None) -> DataReport:
    """Check everything that can be seen without opening an image; seconds for a data set of COCO's size.

    Args:
        data: One split, not streamed.
        num_queries: The model's queries, if it is known: images with more boxes are then reported.
    """
    report = DataReport(source=data.name, images=len(data.dataset), **vars(deepcopy(data.findings)))
    per_category: Counter[int] = Counter()
    farthest = -np.inf
    for boxes, image_ids, sizes in _batches(data):
        learned = check_boxes(report, boxes, image_ids, sizes, data.categories)
        per_image = np.bincount(boxes.image[learned], minlength=len(image_ids))
        report.boxes += int(learned.sum())
        report.crowd += int(boxes.crowd.sum())
        report.images_without_boxes += int((per_image == 0).sum())
        per_category.update(boxes.category[learned].tolist())
        if num_queries is not None:
            for place in np.flatnonzero(per_image > num_queries):
                crowded = f"image id {image_ids[place]}: {per_image[place]} boxes, {num_queries} queries"
                report.add("more boxes than queries", crowded)
        corners = boxes.boxes[:, :2] + boxes.boxes[:, 2:]
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
        report.add("no boxes", report.source)
    _check_files(report, data)
    return report


def check_validation(data: DetectionData, rank: int = 0, processes: int = 1) -> list[str]:
    """Refuse validation data that would fail, or give a wrong AP, hours later in the first evaluation.

    Each process opens its share of the images; the annotations are checked by the first one.

    Returns:
        The warnings about the annotations, in words, from the first process.

    Raises:
        ValueError: Says what is wrong and where.
    """
    report = cheap_checks(data) if rank == 0 else DataReport(source=data.name)
    warnings = report.warning_lines()  # without those of the images, of which this process opens a part
    _open_images(report, data, range(rank, len(data.dataset), processes), progress=False)
    report.raise_on_errors()
    return warnings


def box_statistics(data: DetectionData) -> tuple[np.ndarray, np.ndarray]:
    """Number of boxes of each image (images,), and of each box the root of its area in pixels (boxes,); no crowd."""
    counts, sides = [np.zeros(0, int)], [np.zeros(0)]
    for boxes, image_ids, _ in _batches(data):
        learned = ~boxes.crowd & (boxes.boxes[:, 2:] > 0).all(1)
        counts.append(np.bincount(boxes.image[learned], minlength=len(image_ids)))
        sides.append(np.sqrt(boxes.boxes[learned, 2:].prod(1)))
    return np.concatenate(counts), np.concatenate(sides)


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


def images_of_both(training: DetectionData, other: DetectionData) -> list[str]:
    """A sentence about image files that both splits have, so that AP would be too high; none without such files."""
    if not all("image_path" in data.dataset.column_names for data in (training, other)):
        return []
    paths = other.dataset["image_path"][:]
    shared = {*training.dataset["image_path"][:]}.intersection(paths)
    if not shared:
        return []
    counted = f'{len(shared)} of {len(paths)} images of "{other.split}" are also in "{training.split}"'
    return [f"{counted}, e.g. {min(shared)}: AP of images that were trained on says little"]


def full_checks(data: DetectionData, num_queries: int | None = None, progress: bool = True) -> DataReport:
    """`cheap_checks`, and open every image: broken ones, other sizes than annotated, EXIF orientation."""
    report = cheap_checks(data, num_queries)
    _open_images(report, data, range(len(data.dataset)), progress)
    report.images_opened = True
    return report


def header_checks(data: DetectionData, progress: bool = True) -> DataReport:
    """`cheap_checks`, and read the header of every image file: what `full_checks` finds but for broken pixels."""
    report = cheap_checks(data)
    _open_images(report, data, range(len(data.dataset)), progress, decode=False)
    return report


def _open_images(report: DataReport, data: DetectionData, places: range, progress: bool, decode: bool = True) -> None:
    rows = data.dataset.remove_columns("objects")

    def check(index: int) -> tuple[str, str] | None:
        return _check_image(rows[index], decode)

    bar = tqdm(total=len(places), desc="images", unit="image", disable=not progress, leave=False)
    with ThreadPoolExecutor(os.cpu_count()) as pool, bar:
        for start in range(0, len(places), IMAGES_AT_ONCE):
            # In portions: an interrupted check would otherwise first finish the images already handed to the threads.
            for problem in pool.map(check, places[start : start + IMAGES_AT_ONCE]):
                bar.update()
                if problem is not None:
                    report.add(*problem)


def _batches(data: DetectionData) -> Iterator[tuple[Boxes, np.ndarray, np.ndarray]]:
    """Boxes, ids (images,) and sizes (images, 2) of some thousand images at a time."""
    labels = "label_file" in data.dataset.column_names
    names = ["image_id", "width", "height", "objects", *["label_file", "lines"] * labels]
    columns = data.dataset.select_columns(names).with_format("arrow")
    for table in columns.iter(ROWS_AT_ONCE):
        objects = table["objects"].combine_chunks()
        image = pc.list_parent_indices(objects.field("category")).to_numpy(zero_copy_only=False)
        flat = (objects.field(name).flatten(recursive=True) for name in ("bbox", "category", "area", "iscrowd"))
        boxes, category, areas, crowd = (values.to_numpy(zero_copy_only=False) for values in flat)
        sizes = np.stack([table["width"].to_numpy(), table["height"].to_numpy()], 1)
        origins = label_origins(table["label_file"].to_pylist(), table["lines"].to_pylist()) if labels else None
        found = Boxes(image, category, boxes.reshape(-1, 4), areas, crowd != 0, origins)
        yield found, np.array(table["image_id"]), sizes


def _check_files(report: DataReport, data: DetectionData) -> None:
    """Ids and files that occur twice, and files that do not exist."""
    image_ids = data.dataset["image_id"][:]
    if "image_path" not in data.dataset.column_names:
        check_image_ids(report, np.array(image_ids), lambda place: f"row {place}")
        return
    paths = data.dataset["image_path"][:]
    check_image_ids(report, np.array(image_ids), paths.__getitem__)
    listing = cache(file_names)  # far quicker over a network than one look at each file
    seen: set[str] = set()
    for path, image_id in zip(paths, image_ids, strict=True):
        folder, name = os.path.split(path)
        if name not in listing(folder):
            report.add("missing image", f"{path} (image id {image_id})")
        if path in seen:
            report.add("duplicate file name", f"{path} (image id {image_id})")
        seen.add(path)


def _check_image(row: dict[str, Any], decode: bool) -> tuple[str, str] | None:
    """Kind and description of what is wrong with an image, None where nothing is."""
    where = image_name(row)
    if "image_path" not in row and row["image"] is None:
        return None  # already reported
    source = image_source(row)
    if isinstance(source, str) and not os.path.isfile(source):
        return None if "image_path" in row else ("missing image", where)  # files are already reported
    try:
        width, height, rotated = upright_size(source)
        size = open_image(source).size if decode else (width, height)
    except (OSError, ValueError) as error:
        return "broken image", f"{where}: {error}"
    stated = (row["width"], row["height"])
    if size != stated and 0 not in stated:
        turned = " when upright (EXIF orientation)" if rotated else ""
        return "wrong size", f"{where}: {size[0]} x {size[1]}{turned}, annotated {stated[0]} x {stated[1]}"
    return ("EXIF-rotated image", where) if rotated else None
