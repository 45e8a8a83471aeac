"""Detection data sets as memory-mapped `datasets.Dataset`s.

Rows have the same columns for every source: `image_id`, `width`, `height`, `objects` (`bbox` as x, y, width, height in
absolute pixels, the data set's own `category` ids, `area`, `iscrowd`), and the image as a file name (`image_path`) or
as stored bytes (`image`), opened only when a sample is made. Rows of YOLO and Pascal VOC also have `label_file` and the
`lines` of their objects, for messages.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import datasets

from .classes import number_classes
from .coco import read_coco
from .findings import Findings
from .image_paths import find_coco_files
from .label_files import LabelFiles
from .sources import read_columns, read_rows
from .voc import find_voc_files
from .yolo import find_yolo_files


@dataclass
class DetectionData:
    """One split of a data set and its classes.

    Attributes:
        dataset: Rows with `image_path` or `image`, `image_id`, `width`, `height` and `objects` (crowd included); a
            `datasets.IterableDataset` where streaming was asked for.
        id2label: Class index -> name.
        category_ids: The data set's own id of each class index; None where the class index is that id.
        categories: The data set's own category id -> name.
        source: The data set as the user gave it, for messages.
        annotation_file: The COCO JSON, None for a data set that has none.
        split: The split's name.
        findings: Faults met while reading.
    """

    dataset: Any
    id2label: dict[int, str]
    category_ids: list[int] | None
    categories: dict[int, str]
    source: str
    annotation_file: Path | None = None
    split: str = ""
    findings: Findings = field(default_factory=Findings)

    @property
    def name(self) -> str:
        """The data set, as the user gave it, and the split, for messages."""
        return f'{self.source}, split "{self.split}"' if self.split else self.source


def load_detection_data(
    data: str | Path,
    split: str = "train",
    *,
    annotations: str | Path | None = None,
    images: str | Path | None = None,
    categories: str = "contiguous",
    box_format: str = "xywh",
    cache_dir: str | Path | None = None,
    streaming: bool = False,
    allow_errors: bool = False,
) -> DetectionData:
    """Load one split of a detection data set.

    Args:
        data: A folder in COCO's layout (`annotations/instances_{split}[2017].json` with `images/{split}[2017]`,
            `{split}[2017]` or `images`; or `{split}.json`), a COCO JSON file, a YOLO folder or its `data.yaml`, a
            folder of Pascal VOC, a folder written by `save_to_disk`, a folder of parquet files, or the id of a data set
            on the Hub. Of a folder with several of these the first in this order is read.
        split: "train", "val" or any name that the data set uses.
        annotations: The COCO JSON, where it is not found by itself.
        images: The folder that its `file_name`s are relative to, where it is not found by itself.
        categories: "contiguous" numbers the classes 0..N-1 by category id; "coco91" keeps COCO's own ids as class
            indices in 91 slots, as the released checkpoints do.
        box_format: "xywh", or "xyxy" for Hub data sets that store x1, y1, x2, y2.
        cache_dir: Where indices are kept; default is the `datasets` cache.
        streaming: Read Hub data while it is used instead of downloading it first.
        allow_errors: Leave out what cannot be read and note it in `findings`, for checks.

    Raises:
        FileNotFoundError: There is no such data set, split or image folder; says what was looked for.
        ValueError: A file is not COCO JSON, a label file or list of classes is broken, an entry cannot be read, columns
            are missing, or `categories` or `box_format` does not fit.
    """
    if categories not in ("contiguous", "coco91"):
        raise ValueError(f'categories must be "contiguous" or "coco91", not "{categories}".')
    if box_format not in ("xywh", "xyxy"):
        raise ValueError(f'box_format must be "xywh" or "xyxy", not "{box_format}".')
    coco = find_coco_files(Path(data), split, annotations, images)
    labels = _coco_files(*coco) if coco else _find_label_files(Path(data), split, images)
    if labels and box_format != "xywh":
        raise ValueError(
            f"--box-format is for data sets of the Hub. The boxes of {labels.source} are read as its format has them: "
            "leave --box-format out."
        )
    if labels:
        source = str(labels.source)
        dataset, names, findings = read_rows(labels, cache_dir)
    else:
        source = f'{data}, split "{split}"'
        dataset, names, findings = read_columns(str(data), split, box_format, cache_dir, streaming)
    if not allow_errors:
        findings.refuse_errors(source)
    if streaming and isinstance(dataset, datasets.Dataset):
        dataset = dataset.to_iterable_dataset()
    id2label, category_ids = number_classes(names, categories, str(data))
    return DetectionData(dataset, id2label, category_ids, names, str(data), coco[0] if coco else None, split, findings)


def _coco_files(annotation_file: Path, image_folder: Path) -> LabelFiles:
    read = partial(read_coco, annotation_file)
    return LabelFiles(annotation_file, image_folder, [str(annotation_file)], [], read)


def _find_label_files(data: Path, split: str, images: str | Path | None) -> LabelFiles | None:
    labels = find_yolo_files(data, split) or find_voc_files(data, split)
    if labels and images is not None:
        raise ValueError(f"An image folder belongs to a COCO JSON; {labels.source} says where its images are.")
    return labels
