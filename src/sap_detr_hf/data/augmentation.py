"""Training augmentation: the published one on torchvision.transforms.v2, a flip, a strong one, or the user's own.

An augmentation is any callable `(image, target) -> (image, target)`. The image is an RGB `PIL.Image` (it may return a
PIL image or a (3, height, width) tensor); the target holds `boxes` (n, 4), a `tv_tensors.BoundingBoxes` in x1, y1, x2,
y2 pixels, and `class_labels`, `area` and `iscrowd` (n,) each. Plain torchvision.transforms.v2 transforms qualify.
One that mixes images or changes with the epoch has a method `in_epoch` that returns such a callable, see
`MixingAugmentation`.
"""

import contextlib
import importlib
import random
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.ops import box_area
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from ..model.detection_processing import released_image_size

Target = dict[str, Any]
Augmentation = Callable[[Any, Target], tuple[Any, Target]]


class MixingAugmentation(Protocol):
    """An augmentation that takes further images of the data set, or is another one in another epoch."""

    def in_epoch(self, epoch: int, other: Callable[[], tuple[Any, Target]]) -> Augmentation:
        """The augmentation of an epoch; each call of `other` draws an image of the data set with its target."""


# The published scheme (SAP-DETR supplement; DETR's make_coco_transforms), for a shortest side of 800.
PUBLISHED_SHORTEST_EDGE = 800
PUBLISHED_SCALES = tuple(range(480, 801, 32))
PUBLISHED_SCALES_BEFORE_CROP = (400, 500, 600)
PUBLISHED_CROP = (384, 600)
# A picture like 1 x 4000 would get 1.6 million columns before its crop; this bounds it far beyond any photograph.
LONGEST_BEFORE_CROP = 10

random_flip = v2.RandomHorizontalFlip()  # of an image and its boxes, one time in two


def make_augmentation(
    name: str = "released",
    shortest_edge: int = 800,
    longest_edge: int = 1333,
    *,
    strong_epochs: int | None = None,
    most_boxes: int | None = None,
) -> Augmentation | MixingAugmentation | None:
    """The augmentation of this name.

    Args:
        name: "none" (returns None: the image processor alone), "flip" (horizontal flip, then one size), "released"
            (the published scheme), "strong" (see `strong_augmentation.py`), "strong-no-flip" (the same without
            mirroring), or "package.module:attribute" for a callable of your own.
        shortest_edge: Shortest side of the largest scale in pixels; the published scheme's other lengths are
            scaled with it, so that 240 gives scales of 144 to 240.
        longest_edge: Limit of the longest side after resizing.
        strong_epochs: Epochs after which "strong" gives way to "released"; None: never.
        most_boxes: Of an image that "strong" mixes from others: the model's queries.

    Raises:
        ValueError: The name is none of these, or does not lead to a callable.
    """
    if name == "none":
        return None
    if name == "flip":
        return FlipAugmentation(shortest_edge, longest_edge)
    if name == "released":
        return ReleasedAugmentation(shortest_edge, longest_edge)
    if name in ("strong", "strong-no-flip"):
        from .strong_augmentation import StrongAugmentation  # here, for it is made of this module's parts

        options: dict[str, Any] = {"mirror": name == "strong", "epochs": strong_epochs, "most_boxes": most_boxes}
        return StrongAugmentation(shortest_edge, longest_edge, **options)
    if ":" in name:
        return _import_callable(name)
    raise ValueError(
        f'Unknown augmentation "{name}": use "none", "flip", "released", "strong", "strong-no-flip" or '
        '"package.module:function".'
    )


class FlipAugmentation:
    """Mirror half of the images, then resize to one size."""

    def __init__(self, shortest_edge: int = 800, longest_edge: int = 1333):
        self.shortest_edge, self.longest_edge = shortest_edge, longest_edge

    def __call__(self, image: Any, target: Target) -> tuple[torch.Tensor, Target]:
        """Image of shape (3, height, width), uint8, and its target."""
        image, target = random_flip(_as_tensor(image), target)
        return resize(image, target, self.shortest_edge, self.longest_edge)


class ReleasedAugmentation:
    """The published scheme: flip; then a random scale, or a random crop and a random scale."""

    def __init__(self, shortest_edge: int = 800, longest_edge: int = 1333):
        factor = shortest_edge / PUBLISHED_SHORTEST_EDGE
        self.scales = [max(1, round(scale * factor)) for scale in PUBLISHED_SCALES]
        self.scales_before_crop = [max(1, round(scale * factor)) for scale in PUBLISHED_SCALES_BEFORE_CROP]
        self.crop = (max(1, round(PUBLISHED_CROP[0] * factor)), max(1, round(PUBLISHED_CROP[1] * factor)))
        self.longest_edge = longest_edge

    def __call__(self, image: Any, target: Target) -> tuple[torch.Tensor, Target]:
        """Image of shape (3, height, width), uint8, and its target."""
        image, target = random_flip(_as_tensor(image), target)
        if torch.rand(()) >= 0.5:
            scale = _choose(self.scales_before_crop)
            image, target = resize(image, target, scale, LONGEST_BEFORE_CROP * self.longest_edge)
            image, target = random_size_crop(image, target, *self.crop)
        return resize(image, target, _choose(self.scales), self.longest_edge)


def resize(image: torch.Tensor, target: Target, shortest_edge: int, longest_edge: int) -> tuple[torch.Tensor, Target]:
    """Resize image and boxes; areas (square pixels) grow with the image."""
    height, width = image.shape[-2:]
    size = released_image_size(height, width, shortest_edge, longest_edge)
    growth = size[0] * size[1] / (height * width)
    boxes = F.resize(target["boxes"], list(size))
    return F.resize(image, list(size), antialias=True), {**target, "boxes": boxes, "area": target["area"] * growth}


def random_size_crop(image: torch.Tensor, target: Target, smallest: int, largest: int) -> tuple[torch.Tensor, Target]:
    """Cut a random window, each side between `smallest` and `largest` pixels or what the image has."""
    height, width = image.shape[-2:]
    crop_height = _between(min(height, smallest), min(height, largest))
    crop_width = _between(min(width, smallest), min(width, largest))
    top, left = _between(0, height - crop_height), _between(0, width - crop_width)
    moved = torch.as_tensor(target["boxes"]) - torch.tensor([left, top, left, top])
    boxes = tv_tensors.BoundingBoxes(moved, format="XYXY", canvas_size=(crop_height, crop_width))
    return F.crop(image, top, left, crop_height, crop_width), sanitize({**target, "boxes": boxes})


def sanitize(target: Target) -> Target:
    """Clip boxes to the image and drop what has no area left; a clipped box keeps its share of the area."""
    boxes = target["boxes"]
    height, width = boxes.canvas_size
    before = torch.as_tensor(boxes)  # (n, 4) x1, y1, x2, y2 in pixels
    after = torch.stack([before[:, 0::2].clamp(0, width), before[:, 1::2].clamp(0, height)], -1).flatten(1)
    keep = (after[:, 2:] > after[:, :2]).all(1)
    share = box_area(after) / box_area(before).clamp(min=1e-9)
    kept = {name: values[keep] for name, values in target.items() if name != "boxes"}
    kept["area"] = (target["area"] * share)[keep]
    return {**kept, "boxes": tv_tensors.BoundingBoxes(after[keep], format="XYXY", canvas_size=(height, width))}


@contextlib.contextmanager
def sample_randomness(seed: int, epoch: int, index: int) -> Iterator[None]:
    """Inside, torch's, NumPy's and Python's random numbers on the CPU are a function of the three arguments alone.

    A resumed run, another number of workers and another order of loading thus see the same augmented images. The
    generators' states outside are left as they were.
    """
    states = torch.default_generator.get_state(), np.random.get_state(), random.getstate()
    words = np.random.SeedSequence([seed, epoch, index]).generate_state(3)
    # Not torch.manual_seed: it would also reset the GPU's generators.
    torch.default_generator.manual_seed(int(words[0]))
    np.random.seed(words[1])
    random.seed(int(words[2]))
    try:
        yield
    finally:
        torch.default_generator.set_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


def _as_tensor(image: Any) -> torch.Tensor:
    # Resizing uint8 tensors is several times faster than PIL and equal to it within one gray level.
    return F.pil_to_tensor(image) if isinstance(image, Image.Image) else image


def _between(low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, ()))


def _choose(values: list[int]) -> int:
    return values[_between(0, len(values) - 1)]


def _import_callable(name: str) -> Augmentation:
    module_name, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f'Cannot load the augmentation "{name}": {error}.') from error
    if not callable(function):
        raise ValueError(f'The augmentation "{name}" is a {type(function).__name__}, not something to call.')
    return function
