"""Strong augmentation: scale jitter, mosaic and mixup, switched off for the last epochs of a run.

The result has the shape of the image. *Jitter* (large-scale jitter, arXiv 2012.07177) scales the image by 0.4 to 2, and
crops or pads it at a random position; with the smaller scales of that paper (from 0.1), small objects would vanish. A
*mosaic* (YOLOv4, arXiv 2004.10934) is four images, jittered into the four tiles of the canvas. *Mixup* (arXiv
1902.04103) blends another jittered image over all of it; both keep all their boxes.

Boxes are clipped to the canvas or their tile, and `area` is scaled with them. A box is dropped if less than a tenth of
its area or less than a pixel of a side remains. Crowd regions are treated alike and stay crowd regions.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.ops import box_area
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from ..model.detection_processing import released_image_size
from .augmentation import Augmentation, ReleasedAugmentation, Target, _as_tensor, _choose, random_flip, resize

SCALES = (0.4, 2.0)  # of the largest size that fits the canvas
TILE_SCALES = (0.8, 2.0)  # of the largest size that fits a tile, which has about half of the canvas' sides
TILE_EDGES = (0.35, 0.65)  # where the four tiles meet, of height and width
MOSAIC_SHARE, MIXUP_SHARE = 0.5, 0.25  # of the samples
BLEND = (0.45, 0.55)  # weight of the other image
LEAST_VISIBLE, LEAST_SIDE = 0.1, 1.0  # of a box that stays: share of its area, pixels
GRAY = 114  # of what no image covers

Sample = tuple[Any, Target]


class StrongAugmentation:
    """Jitter, mosaic and mixup, then a weaker augmentation.

    Args:
        shortest_edge: Shortest side of the largest scale in pixels; the canvas has one of the published scheme's sizes.
        longest_edge: Limit of the canvas' longest side.
        mirror: Whether half of the images are mirrored. The weaker augmentation is the published scheme, or with
            `False` one size.
        epochs: How many epochs it is strong in; None for all.
        most_boxes: Images are not mixed into one of more boxes, for instance than the model has queries.
    """

    def __init__(
        self,
        shortest_edge: int = 800,
        longest_edge: int = 1333,
        *,
        mirror: bool = True,
        epochs: int | None = None,
        most_boxes: int | None = None,
    ):
        self.weaker = ReleasedAugmentation(shortest_edge, longest_edge)
        self.shortest_edge, self.longest_edge, self.mirror = shortest_edge, longest_edge, mirror
        self.epochs, self.most_boxes = epochs, most_boxes

    def in_epoch(self, epoch: int, other: Callable[[], Sample]) -> Augmentation:
        """The augmentation of an epoch; `other` draws another image of the data set with its target."""
        if self.epochs is None or epoch < self.epochs:
            return partial(self._mix, other)
        return self.weaker if self.mirror else self._one_size

    def _mix(self, other: Callable[[], Sample], image: Any, target: Target) -> Sample:
        image, target = self._prepared(image, target)
        height, width = image.shape[-2:]
        size = released_image_size(height, width, _choose(self.weaker.scales), self.longest_edge)
        alone = jitter(image, target, size)
        if torch.rand(()) < MOSAIC_SHARE and min(size) > 1:
            others = [self._prepared(*other()) for _ in range(3)]
            alone = self._if_learnable(mosaic([(image, target), *others], size), alone)
        if torch.rand(()) < MIXUP_SHARE:
            alone = self._if_learnable(mixup(alone, jitter(*self._prepared(*other()), size)), alone)
        return alone

    def _if_learnable(self, mixed: Sample, otherwise: Sample) -> Sample:
        return otherwise if self.most_boxes is not None and len(mixed[1]["boxes"]) > self.most_boxes else mixed

    def _prepared(self, image: Any, target: Target) -> Sample:
        return random_flip(_as_tensor(image), target) if self.mirror else (_as_tensor(image), target)

    def _one_size(self, image: Any, target: Target) -> Sample:
        return resize(_as_tensor(image), target, self.shortest_edge, self.longest_edge)


def jitter(image: torch.Tensor, target: Target, size: tuple[int, int], scales: tuple[float, float] = SCALES) -> Sample:
    """Scale an image at random and cut or pad it at a random place to `size` (height, width).

    Args:
        image: (3, height, width).
        target: Its boxes in x1, y1, x2, y2 pixels, and their fields.
        size: Of the result.
        scales: Smallest and largest, of the largest at which the image fits into the result.
    """
    height, width = image.shape[-2:]
    scale = min(size[0] / height, size[1] / width) * _uniform(*scales)
    scaled = [max(1, round(height * scale)), max(1, round(width * scale))]
    whole = F.resize(target["boxes"], scaled)
    window = v2.RandomCrop(size, pad_if_needed=True, fill=GRAY)
    image, boxes = window(F.resize(image, scaled, antialias=True), whole)
    share = box_area(torch.as_tensor(boxes)) / box_area(torch.as_tensor(whole)).clamp(min=1e-9)
    sides = torch.as_tensor(boxes[:, 2:] - boxes[:, :2])
    stays = (share >= LEAST_VISIBLE) & (sides >= LEAST_SIDE).all(1)
    growth = scaled[0] * scaled[1] / (height * width)
    target = {**target, "area": target["area"] * growth * share}
    return image, _with_boxes({name: values[stays] for name, values in target.items()}, boxes[stays], size)


def mosaic(samples: Sequence[Sample], size: tuple[int, int]) -> Sample:
    """One image of `size` (height, width), 2 at least, from four: each jittered into its tile."""
    height, width = size
    row, column = (min(max(1, round(side * _uniform(*TILE_EDGES))), side - 1) for side in size)
    tiles = [(top, left, bottom, right) for top, bottom in ((0, row), (row, height))
             for left, right in ((0, column), (column, width))]  # fmt: skip
    canvas = samples[0][0].new_empty(3, height, width)
    targets, boxes = [], []
    for (image, target), (top, left, bottom, right) in zip(samples, tiles, strict=True):
        image, target = jitter(image, target, (bottom - top, right - left), TILE_SCALES)
        canvas[:, top:bottom, left:right] = image
        boxes.append(torch.as_tensor(target["boxes"]) + torch.tensor([left, top, left, top]))
        targets.append(target)
    return canvas, _joined(targets, boxes, size)


def mixup(sample: Sample, other: Sample) -> Sample:
    """Blend two images (3, height, width), uint8, of one size, and take the boxes of both."""
    blended = torch.lerp(sample[0].float(), other[0].float(), _uniform(*BLEND)).round().to(torch.uint8)
    targets = [sample[1], other[1]]
    return blended, _joined(targets, [torch.as_tensor(each["boxes"]) for each in targets], blended.shape[-2:])


def _joined(targets: Sequence[Target], boxes: Sequence[torch.Tensor], size: Sequence[int]) -> Target:
    fields = {name: torch.cat([target[name] for target in targets]) for name in targets[0] if name != "boxes"}
    return _with_boxes(fields, torch.cat(list(boxes)), size)


def _with_boxes(fields: Target, boxes: torch.Tensor, size: Sequence[int]) -> Target:
    return {**fields, "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=tuple(size))}


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))
