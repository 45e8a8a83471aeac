"""Detection data sets as memory-mapped `datasets.Dataset`s, with the training samples and batches.

Rows have the same columns for every source: `image_id`, `width`, `height`, `objects` (`bbox` as x, y, width, height in
absolute pixels, the data set's own `category` ids, `area`, `iscrowd`), and the image as a file name (`image_path`) or
as stored bytes (`image`), opened only when a sample is made. Rows of YOLO and Pascal VOC also have `label_file` and the
`lines` of their objects, for messages.
"""

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.ops import box_area, box_convert
from torchvision.transforms.v2 import functional as F

from ..model.coco_labels import COCO_ID2LABEL
from ..model.image_files import open_image
from .augmentation import Augmentation, MixingAugmentation, Target, sample_randomness, sanitize
from .findings import Findings
from .image_paths import find_coco_files
from .sources import read_coco_rows, read_columns, read_label_rows
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
            are missing, or `categories` does not fit.
    """
    if categories not in ("contiguous", "coco91"):
        raise ValueError(f'categories must be "contiguous" or "coco91", not "{categories}".')
    if box_format not in ("xywh", "xyxy"):
        raise ValueError(f'box_format must be "xywh" or "xyxy", not "{box_format}".')
    annotation_file = None
    if files := find_coco_files(Path(data), split, annotations, images):
        annotation_file = files[0]
        dataset, names, findings = read_coco_rows(*files, cache_dir)
        source = str(annotation_file)
    elif labels := find_yolo_files(Path(data), split) or find_voc_files(Path(data), split):
        if images is not None:
            raise ValueError(f"An image folder belongs to a COCO JSON; {labels.source} says where its images are.")
        dataset, names, findings = read_label_rows(labels, cache_dir)
        source = str(labels.source)
    else:
        source = f'{data}, split "{split}"'
        dataset, names, findings = read_columns(str(data), split, box_format, cache_dir, streaming)
    if not allow_errors:
        findings.refuse_errors(source)
    if streaming and isinstance(dataset, datasets.Dataset):
        dataset = dataset.to_iterable_dataset()
    id2label, category_ids = number_classes(names, categories, str(data))
    return DetectionData(dataset, id2label, category_ids, names, str(data), annotation_file, split, findings)


def number_classes(names: dict[int, str], categories: str, source: str) -> tuple[dict[int, str], list[int] | None]:
    """`id2label` and `category_ids` of the categories (id -> name); see `load_detection_data` for the two ways."""
    if categories == "contiguous":
        category_ids = sorted(names)
        return {index: names[category_id] for index, category_id in enumerate(category_ids)}, category_ids
    for category_id, name in names.items():
        if category_id not in COCO_ID2LABEL:
            raise ValueError(
                f'Category {category_id} ("{name}") of {source} does not fit into the {len(COCO_ID2LABEL)} slots of '
                'categories "coco91": use "contiguous".'
            )
    return {**COCO_ID2LABEL, **names}, None


def image_source(row: dict[str, Any]) -> str | bytes:
    """What `open_image` takes to open this row's image."""
    if "image_path" in row:
        return row["image_path"]
    return row["image"]["bytes"] if row["image"]["bytes"] is not None else row["image"]["path"]


def image_name(row: dict[str, Any]) -> str:
    """The image's file name, as far as it has one, and id, for messages."""
    name = row.get("image_path") or (row.get("image") or {}).get("path") or "stored image"
    return f"{name} (image id {row['image_id']})"


def class_indices(categories: Iterable[int], category_ids: list[int] | None) -> torch.Tensor:
    """Class index of each of the data set's own category ids, (n,) int64.

    Raises:
        ValueError: A category id is not among `category_ids`.
    """
    if category_ids is None:
        return torch.tensor(list(categories), dtype=torch.int64)
    index_of = {category_id: index for index, category_id in enumerate(category_ids)}
    try:
        return torch.tensor([index_of[category] for category in categories], dtype=torch.int64)
    except KeyError as error:
        raise ValueError(f"Category id {error.args[0]} is not one of the classes' ids {category_ids}.") from error


def check_categories(data: DetectionData, config: Any) -> None:
    """Make sure that every category of the data is the model's class of the same name.

    Args:
        data: The data set.
        config: The model's configuration, with `id2label` and `category_ids`.

    Raises:
        ValueError: Names the first category that the model does not know or calls otherwise, and what to do.
    """
    category_ids = getattr(config, "category_ids", None)
    labels = {int(index): label for index, label in config.id2label.items()}
    if category_ids is None:
        label_of = labels
    else:
        label_of = {category_id: labels[index] for index, category_id in enumerate(category_ids)}
    advice = (
        "Train with a new head for these categories, or use the data set that the model was trained on"
        " (released COCO checkpoints: raw ids 1..90 in 91 slots)."
    )
    for category_id, name in data.categories.items():
        if category_id not in label_of:
            raise ValueError(
                f'Category {category_id} ("{name}") of {data.source} is not among the model\'s {len(label_of)} '
                f"category ids {_shortened(sorted(label_of))}. {advice}"
            )
        label = label_of[category_id]
        unnamed = label.startswith("LABEL_")
        if not unnamed and label.casefold() != name.casefold():
            raise ValueError(
                f'Category {category_id} is "{name}" in {data.source} but "{label}" in the model. {advice}'
            )


class RowPreparation:
    """Makes a training sample of a row: opens the image, augments, normalizes, and writes its labels.

    Args:
        image_processor: Scales and normalizes; without an augmentation it also resizes.
        augmentation: See `augmentation.py`; None prepares images exactly as at prediction.
        category_ids: The data set's own id of each class index; None where the class index is that id.
        seed: Of the augmentation.
        keep_crowd: Whether the labels also hold crowd boxes (training drops them).
    """

    def __init__(
        self,
        image_processor: Any,
        augmentation: Augmentation | MixingAugmentation | None,
        category_ids: list[int] | None,
        seed: int = 0,
        keep_crowd: bool = False,
    ):
        self.image_processor = image_processor
        self.augmentation = augmentation
        self.category_ids = category_ids
        self.seed = seed
        self.keep_crowd = keep_crowd

    def __call__(self, row: dict[str, Any], epoch: int, index: int, rows: Any = ()) -> dict[str, Any]:
        """The sample: `pixel_values` (3, height, width) float32 and `labels`; `rows` are those it can be mixed with."""
        image, target = self._load(row)
        if self.augmentation is None:
            pixel_values = self.image_processor(images=image, do_pad=False, return_tensors="pt")["pixel_values"][0]
        else:
            with sample_randomness(self.seed, epoch, index):
                image, target = self._augmentation(epoch, rows)(image, target)
            image = _pixels(image)
            _check_canvas(target, image)
            pixel_values = normalize(image, self.image_processor)
        return {"pixel_values": pixel_values, "labels": _labels(row, target, pixel_values.shape[-2:])}

    def _augmentation(self, epoch: int, rows: Any) -> Augmentation:
        augmentation: Any = self.augmentation
        if not hasattr(augmentation, "in_epoch"):
            return augmentation
        return augmentation.in_epoch(epoch, lambda: self._load(rows[int(torch.randint(len(rows), ()))]))

    def _load(self, row: dict[str, Any]) -> tuple[Any, Target]:
        return open_row_image(row), self._target(row)

    def _target(self, row: dict[str, Any]) -> Target:
        objects = row["objects"]
        boxes = torch.tensor(objects["bbox"], dtype=torch.float32).reshape(-1, 4)  # (n, 4) x, y, width, height
        if not torch.isfinite(boxes).all():
            raise ValueError(f"{_where(row)} has a box with a coordinate that is not a finite number.")
        boxes = box_convert(boxes, "xywh", "xyxy")
        try:
            classes = class_indices(objects["category"], self.category_ids)
        except ValueError as error:
            raise ValueError(f"{_where(row)}: {error}") from error
        crowd = torch.tensor(objects["iscrowd"], dtype=torch.int64)
        keep = torch.ones_like(crowd, dtype=torch.bool) if self.keep_crowd else crowd == 0
        canvas_size = (row["height"], row["width"])
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes[keep], format="XYXY", canvas_size=canvas_size),
            "class_labels": classes[keep],
            "area": torch.tensor(objects["area"], dtype=torch.float32)[keep],
            "iscrowd": crowd[keep],
        }
        return sanitize(target)


class _PreparedSamples:
    """What rows and streams of samples share: the preparation and the epoch that its augmentation depends on."""

    def __init__(
        self,
        data: DetectionData,
        image_processor: Any,
        augmentation: Augmentation | MixingAugmentation | None = None,
        *,
        category_ids: list[int] | str | None = "data",
        seed: int = 0,
        keep_crowd: bool = False,
    ):
        self.data = data
        ids = data.category_ids if isinstance(category_ids, str) else category_ids
        self.prepare = RowPreparation(image_processor, augmentation, ids, seed, keep_crowd)
        # Shared memory, so that the epoch also reaches workers that live on between epochs.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Give the samples another augmentation."""
        self._epoch.fill_(epoch)


class DetectionRows(_PreparedSamples, torch.utils.data.Dataset):
    """Training or validation samples of a data set, by row number.

    `category_ids` defaults to those of the data; give the model's where a model is fine-tuned or evaluated. Other
    arguments are those of `RowPreparation`. Augmentation depends on `seed`, the epoch and the row number alone.
    """

    def __len__(self) -> int:
        return len(self.data.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The sample of one row, see `RowPreparation`.

        Raises:
            OSError: The image cannot be read; names the file and the image id.
            ValueError: The row's boxes or sizes cannot be right.
        """
        return self.prepare(self.data.dataset[index], int(self._epoch), index, self.data.dataset)


class DetectionStream(_PreparedSamples, torch.utils.data.IterableDataset):
    """Samples of a streamed data set; arguments as for `DetectionRows`. Augmentation depends on the image id.

    Raises:
        ValueError: The augmentation mixes images.
    """

    def __init__(self, data: DetectionData, image_processor: Any, augmentation: Any = None, **options):
        if hasattr(augmentation, "in_epoch"):
            raise ValueError(
                "The augmentation mixes images, but a stream reads one after the other: download the data."
            )
        super().__init__(data, image_processor, augmentation, **options)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch = int(self._epoch)
        for row in self.data.dataset:
            yield self.prepare(row, epoch, abs(_id_number(row["image_id"])))

    def set_epoch(self, epoch: int) -> None:
        """Give the samples another augmentation, and a shuffled stream another order."""
        super().set_epoch(epoch)
        self.data.dataset.set_epoch(epoch)


def collate(batch: list[dict[str, Any]]) -> dict[str, Any]:
    """Pad samples at the right and bottom to the batch's largest height and width.

    Returns:
        `pixel_values` (batch, 3, height, width), `pixel_mask` (batch, height, width) with 1 where the image is (a
        sample may bring a mask of its own), and `labels`, a list with one dictionary per image.
    """
    height = max(sample["pixel_values"].shape[-2] for sample in batch)
    width = max(sample["pixel_values"].shape[-1] for sample in batch)
    pixel_values = batch[0]["pixel_values"].new_zeros(len(batch), 3, height, width)
    pixel_mask = torch.zeros(len(batch), height, width, dtype=torch.int64)
    for image, mask, sample in zip(pixel_values, pixel_mask, batch, strict=True):
        h, w = sample["pixel_values"].shape[-2:]
        image[:, :h, :w] = sample["pixel_values"]
        mask[:h, :w] = sample.get("pixel_mask", 1)
    return {"pixel_values": pixel_values, "pixel_mask": pixel_mask, "labels": [sample["labels"] for sample in batch]}


def open_row_image(row: dict[str, Any]) -> Any:
    """The row's image, upright RGB.

    Raises:
        OSError: It cannot be read; names the file and the image id.
        ValueError: It has another size than the row says, so that the boxes would be elsewhere.
    """
    try:
        image = open_image(image_source(row))
    except (OSError, ValueError) as error:
        raise OSError(f"{_where(row)} cannot be read. {error}") from error
    if image.size != (row["width"], row["height"]):
        raise ValueError(
            f"{_where(row)} is {image.width} x {image.height} pixels, but the annotations say "
            f"{row['width']} x {row['height']}. Run `sap-detr check-data` on the data set."
        )
    return image


def _id_number(image_id: int | str) -> int:
    return image_id if isinstance(image_id, int) else zlib.crc32(image_id.encode())  # of a text, always the same


def _where(row: dict[str, Any]) -> str:
    return f"Image {image_name(row)}"


def normalize(image: torch.Tensor, image_processor: Any) -> torch.Tensor:
    """Scale and normalize a (3, height, width) image, 0 to 255, with the image processor's own methods: float32.

    Raises:
        ValueError: The Pillow backend, which takes 8 bits, was given values that are not finite.
    """
    if not hasattr(image_processor, "rescale_and_normalize"):  # the Pillow backend
        if image.is_floating_point():
            if not image.isfinite().all():
                raise ValueError("The augmentation returned an image with values that are not finite.")
            image = image.round().byte()
        options = {"do_resize": False, "do_pad": False, "return_tensors": "pt"}
        return image_processor(images=image, **options)["pixel_values"][0].float()
    names = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
    values = (getattr(image_processor, name) for name in names)
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in zip(names, values, strict=True)}
    # The same arithmetic as in a whole call, without its copies: a tenth of the time of a sample.
    return image_processor.rescale_and_normalize(image[None], **options)[0].float()


def _pixels(image: Any) -> torch.Tensor:
    """An augmented image as (3, height, width), 0 to 255: uint8, or float32 where it is float, in [0, 1]."""
    image = image if isinstance(image, torch.Tensor) else F.pil_to_tensor(image)
    if image.is_floating_point():
        return image.float().clamp(0, 1) * 255  # a NaN stays one, for training to stop at
    image = F.to_dtype(torch.as_tensor(image), torch.uint8, scale=True)
    # Resized images lie channel beside channel; NumPy parts the channels in half of PyTorch's time.
    return torch.from_numpy(np.ascontiguousarray(image.numpy()))


def _check_canvas(target: Target, image: torch.Tensor) -> None:
    canvas_size, size = getattr(target["boxes"], "canvas_size", None), tuple(image.shape[-2:])
    if canvas_size != size:
        raise ValueError(
            f"The augmentation returned an image of (height, width) {size} with boxes of canvas_size {canvas_size}: "
            "boxes must be a tv_tensors.BoundingBoxes of the returned image."
        )


def _labels(row: dict[str, Any], target: Target, size: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Labels for an image of `size` (height, width), from boxes in pixels of their own canvas."""
    target = sanitize(_with_aligned_fields(target))
    height, width = target["boxes"].canvas_size
    corners = torch.as_tensor(target["boxes"]) / torch.tensor([width, height, width, height])  # (n, 4) in [0, 1]
    return {
        "class_labels": target["class_labels"],
        "boxes": box_convert(corners, "xyxy", "cxcywh"),
        "area": target["area"] * (size[0] * size[1] / (height * width)),
        "iscrowd": target["iscrowd"],
        "image_id": torch.tensor([_id_number(row["image_id"])]),
        "orig_size": torch.tensor([row["height"], row["width"]]),
        "size": torch.tensor(size),
    }


def _with_aligned_fields(target: Target) -> Target:
    """The target in x1, y1, x2, y2, with areas and crowd flags made anew where an augmentation dropped boxes only."""
    boxes = target["boxes"]
    corners = F.convert_bounding_box_format(boxes, new_format=tv_tensors.BoundingBoxFormat.XYXY)
    if len(target["class_labels"]) != len(boxes):
        raise ValueError(
            f"The augmentation returned {len(boxes)} boxes but {len(target['class_labels'])} class labels."
        )
    target = {**target, "boxes": corners}
    if len(target["area"]) != len(boxes):
        target["area"] = box_area(torch.as_tensor(corners))
    if len(target["iscrowd"]) != len(boxes):
        target["iscrowd"] = torch.zeros(len(boxes), dtype=torch.int64)
    return target


def _shortened(values: list[int]) -> str:
    return str(values) if len(values) <= 20 else f"{values[0]}..{values[-1]}"
