"""Detect objects in images: shared by evaluation, prediction, explanations and the browser page."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..evaluation_mode import evaluation_mode
from ..model.detection_processing import released_image_size

TENSORS = ("scores", "boxes", "points", "classes", "queries")  # of `SalientDetections`: all but the labels


@dataclass
class SalientDetections:
    """Detections of one image, best first, float32 on the CPU.

    Args:
        scores: (n,) in [0, 1].
        labels: names, from `config.id2label`.
        boxes: (n, 4) x1, y1, x2, y2 in pixels.
        points: (n, 2) x, y in pixels: the salient point the box was predicted from; NaN of a model that has none.
        classes: (n,) int64, class indices.
        queries: (n,) int64, the query each detection came from; one query may give several classes. -1 where the image
            processor does not say.
    """

    scores: torch.Tensor
    labels: list[str]
    boxes: torch.Tensor
    points: torch.Tensor
    classes: torch.Tensor
    queries: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def coco_boxes(self) -> torch.Tensor:
        """(n, 4) x, y, width, height in pixels, as in COCO's files."""
        return torch.cat([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], dim=1)

    def select(self, index: torch.Tensor) -> "SalientDetections":
        """The detections at the positions `index` (m,) int64, in that order."""
        labels = [self.labels[place] for place in index.tolist()]
        return replace(self, labels=labels, **{name: getattr(self, name)[index] for name in TENSORS})

    def shifted(self, x: float, y: float) -> "SalientDetections":
        """The detections of a slice in pixels of the image, where the slice's left top corner is at `x`, `y`."""
        shift = torch.tensor([x, y], dtype=self.boxes.dtype)
        return replace(self, boxes=self.boxes + shift.repeat(2), points=self.points + shift)

    @classmethod
    def join(cls, parts: "Sequence[SalientDetections]") -> "SalientDetections":
        """All detections of at least one part, one part after the other."""
        labels = [label for part in parts for label in part.labels]
        return cls(labels=labels, **{name: torch.cat([getattr(part, name) for part in parts]) for name in TENSORS})


class Detector:
    """A detection model with its image processor, run in evaluation mode and left in the mode it was in.

    Args:
        model: gives `logits` (B, N, K), `pred_boxes` (B, N, 4) and, where it is SAP-DETR, `pred_points` (B, N, 2) for
            `pixel_values` and `pixel_mask`.
        image_processor: the model's.
        threshold: only detections of a higher score.
        top_k: detections of an image at most, over all classes.
        autocast_dtype: run the model under autocast with this type.
        device: where the images go; default is the model's device.
    """

    def __init__(
        self,
        model: Any,
        image_processor: Any,
        threshold: float = 0.5,
        top_k: int = 300,
        autocast_dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ):
        self.model, self.image_processor = model, image_processor
        self.threshold, self.top_k = threshold, top_k
        self.autocast_dtype = autocast_dtype
        self.device = next(model.parameters()).device if device is None else device

    def detect(self, image: Image.Image, name: str = "the image") -> SalientDetections:
        """Detect objects in one upright RGB image, called `name` in messages.

        Raises:
            ValueError: the model's output is not finite.
        """
        (found,) = self(prepare_batch(self.image_processor, image), [image.size], [name])
        if isinstance(found, ValueError):
            raise found
        return found

    def __call__(
        self, batch: Mapping[str, Any], sizes: Sequence[tuple[int, int]], names: Sequence[str]
    ) -> list[SalientDetections | ValueError]:
        """Each image's detections, or why there are none, see [`run`] and [`read`]."""
        return self.read(self.run(batch), sizes, names)

    @torch.no_grad()
    def run(self, batch: Mapping[str, Any]) -> Any:
        """The model's outputs for `pixel_values` (B, 3, H, W) and, where it is padded, `pixel_mask` (B, H, W)."""
        dtype = next(self.model.parameters()).dtype
        pixel_values = batch["pixel_values"].to(self.device, dtype, non_blocking=True)
        pixel_mask = batch.get("pixel_mask")
        if pixel_mask is not None:  # attention without a mask is faster
            pixel_mask = None if pixel_mask.all() else pixel_mask.to(self.device, non_blocking=True)
        autocast = torch.autocast(self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None)
        with evaluation_mode(self.model), autocast:
            return self.model(pixel_values=pixel_values, pixel_mask=pixel_mask)

    def read(
        self, outputs: Any, sizes: Sequence[tuple[int, int]], names: Sequence[str]
    ) -> list[SalientDetections | ValueError]:
        """Pick each image's detections from the model's outputs.

        Args:
            outputs: of [`run`].
            sizes: width and height of each upright image before the image processor.
            names: what a message calls each image.

        Returns:
            Of each image its detections, or the error that its output is not finite.
        """
        found = self.image_processor.post_process_object_detection(
            outputs, self.threshold, [(height, width) for width, height in sizes], top_k=self.top_k
        )
        finite = outputs.logits.isfinite().flatten(1).all(1) & outputs.pred_boxes.isfinite().flatten(1).all(1)
        return [
            self._detections(each) if ok else _not_finite(name)
            for each, ok, name in zip(found, finite.tolist(), names, strict=True)
        ]

    def _detections(self, found: Mapping[str, torch.Tensor]) -> SalientDetections:
        tensors = {name: values.detach().cpu() for name, values in found.items()}
        classes = tensors["labels"]
        id2label = getattr(self.model.config, "id2label", None)
        return SalientDetections(
            scores=tensors["scores"].float(),
            labels=[label_name(id2label, index) for index in classes.tolist()],
            boxes=tensors["boxes"].float(),
            points=tensors.get("points", torch.full((len(classes), 2), torch.nan)),
            classes=classes,
            queries=tensors.get("queries", torch.full_like(classes, -1)),
        )


def detect_with_points(
    model: Any, image_processor: Any, image: Image.Image, threshold: float = 0.5, top_k: int = 300
) -> SalientDetections:
    """Detect objects in an upright RGB image; the same scores, labels and boxes as the pipeline's for that image.

    Arguments are those of [`Detector`]; [`open_image`] opens an image. A pipeline that is given a file opens it by
    itself: it clips 16-bit images and drops transparency, where [`open_image`] scales and blends them.

    Raises:
        ValueError: the model's output is not finite.
    """
    return Detector(model, image_processor, threshold, top_k).detect(image)


def prepare_image(image_processor: Any, image: Image.Image) -> dict[str, torch.Tensor]:
    """`pixel_values` (3, height, width) of one image, and `pixel_mask` (height, width) where it is padded."""
    do_pad = _fixed_size(image_processor) is not None  # an image alone is padded to nothing else
    inputs = image_processor(images=image, do_pad=do_pad, return_tensors="pt")
    return {name: inputs[name][0] for name in ("pixel_values", "pixel_mask") if name in inputs}


def prepare_batch(image_processor: Any, *images: Image.Image) -> dict[str, torch.Tensor]:
    """[`prepare_image`] of images of one size as a batch."""
    prepared = [prepare_image(image_processor, image) for image in images]
    return {name: torch.stack([each[name] for each in prepared]) for name in prepared[0]}


def prepared_size(image_processor: Any, height: int, width: int) -> tuple[int, int]:
    """Height and width of an image after [`prepare_image`]."""
    size = image_processor.size
    fixed = _fixed_size(image_processor)
    if fixed is not None:
        return fixed.height, fixed.width
    if not image_processor.do_resize:
        return height, width
    if size.get("shortest_edge") and size.get("longest_edge"):
        return released_image_size(height, width, size["shortest_edge"], size["longest_edge"])
    blank = np.zeros((height, width, 3), dtype=np.uint8)
    return tuple(image_processor(images=blank, do_pad=False, return_tensors="pt")["pixel_values"].shape[-2:])


def plan_batches(sizes: Sequence[tuple[int, ...]], batch_size: int, pad_batches: bool = False) -> list[list[int]]:
    """Numbers of the images of each batch.

    Args:
        sizes: height and width of each image as the model gets it.
        batch_size: images a batch.
        pad_batches: take the images in order, as the released evaluation does: they are padded for one another.
            Otherwise a batch holds images of one size, so that none depends on its neighbors; the largest size first,
            so that too large a batch shows at once.
    """
    groups = defaultdict(list)
    for index, size in enumerate(sizes):
        groups[(0, 0) if pad_batches else size].append(index)
    ordered = sorted(groups.items(), key=lambda group: (-group[0][0] * group[0][1], group[0]))
    return [indices[i : i + batch_size] for _, indices in ordered for i in range(0, len(indices), batch_size)]


def label_name(id2label: Mapping[Any, str] | None, index: int) -> str:
    """Name of a class index; transformers' own where the model has none."""
    return str((id2label or {}).get(index, f"LABEL_{index}"))


def _fixed_size(image_processor: Any) -> Any:
    """The size that the image processor pads every image to, None where there is none."""
    return image_processor.pad_size if image_processor.do_pad and getattr(image_processor, "pad_size", None) else None


def _not_finite(name: str) -> ValueError:
    return ValueError(
        f"The model's output for {name} is not finite: its weights are broken (a diverged training), or its type has "
        "too small a range (try float32 or bfloat16)."
    )
