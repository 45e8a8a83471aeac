"""Training samples of a data set's rows, and their batches: image opened, augmented, normalized; labels in [0, 1]."""

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.ops import box_area, box_convert
from torchvision.transforms.v2 import functional as F

from ..model.image_files import open_image
from .augmentation import Augmentation, MixingAugmentation, Target, sample_randomness, sanitize
from .classes import class_indices
from .dataset import DetectionData
from .sources import image_source


def image_name(row: dict[str, Any]) -> str:
    """The image's file name, as far as it has one, and id, for messages."""
    name = row.get("image_path") or (row.get("image") or {}).get("path") or "stored image"
    return f"{name} (image id {row['image_id']})"


class _Samples:
    """What rows and streams share: opens a row's image, augments and normalizes it, and writes its labels."""

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
        self.image_processor = image_processor
        self.augmentation: Any = augmentation
        self.category_ids = data.category_ids if isinstance(category_ids, str) else category_ids
        self.seed = seed
        self.keep_crowd = keep_crowd
        # Shared memory, so that the epoch also reaches workers that live on between epochs.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Give the samples another augmentation."""
        self._epoch.fill_(epoch)

    def _sample(self, row: dict[str, Any], epoch: int, index: int) -> dict[str, Any]:
        image, target = self._load(row)
        if self.augmentation is None:
            pixel_values = self.image_processor(images=image, do_pad=False, return_tensors="pt")["pixel_values"][0]
        else:
            with sample_randomness(self.seed, epoch, index):
                augment = self.augmentation
                if hasattr(augment, "in_epoch"):
                    augment = augment.in_epoch(epoch, self._other)
                image, target = augment(image, target)
            image = _pixels(image)
            _check_canvas(target, image)
            pixel_values = normalize(image, self.image_processor)
        return {"pixel_values": pixel_values, "labels": _labels(row, target, pixel_values.shape[-2:])}

    def _other(self) -> tuple[Any, Target]:
        rows = self.data.dataset
        return self._load(rows[int(torch.randint(len(rows), ()))])

    def _load(self, row: dict[str, Any]) -> tuple[Any, Target]:
        image, objects = open_row_image(row), row["objects"]
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
        return image, sanitize(target)


class DetectionRows(_Samples, torch.utils.data.Dataset):
    """Training or validation samples of a data set, by row number: `pixel_values` (3, height, width) and `labels`.

    Augmentation depends on `seed`, the epoch and the row number alone.

    Args:
        data: The data set.
        image_processor: Scales and normalizes; without an augmentation it also resizes.
        augmentation: See `augmentation.py`; None prepares images exactly as at prediction.
        category_ids: Id of each class index, None where the class index is the id: the model's, where one is fine-tuned
            or evaluated; by default the data's.
        seed: Of the augmentation.
        keep_crowd: Whether the labels also hold crowd boxes (training drops them).
    """

    def __len__(self) -> int:
        return len(self.data.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The sample of one row.

        Raises:
            OSError: The image cannot be read; names the file and the image id.
            ValueError: The row's boxes or sizes cannot be right.
        """
        return self._sample(self.data.dataset[index], int(self._epoch), index)


class DetectionStream(_Samples, torch.utils.data.IterableDataset):
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
            yield self._sample(row, epoch, abs(_id_number(row["image_id"])))

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
