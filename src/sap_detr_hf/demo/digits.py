"""The demo data set: real handwritten digits scattered over crops of real photographs, in COCO format.

Everything comes from files that scikit-learn ships (1,797 scanned digits of 8 x 8 pixels, two photographs), so nothing
is downloaded. Training and validation images show different scans, on crops of the same photographs.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

# Class index = digit; COCO category ids start at 1.
CATEGORIES = [{"id": digit + 1, "name": str(digit), "supercategory": "digit"} for digit in range(10)]
DIGIT_WIDENING = (0.85, 1.25)  # width of a digit against its scanned proportions
VALIDATION_SHARE = 0.2  # of the scanned digits
INK_EDGES = (0.42, 0.68)  # gray values of the enlarged scan where a stroke begins and is fully opaque
INK_TINT = 60  # gray levels (of 255) by which each color channel of white or black ink may be off
GAP = 2  # pixels between the boxes of two digits


@dataclass
class DigitSource:
    """What one split draws from: scans (n, 8, 8) with values 0..1, their digits (n,), and photographs."""

    scans: np.ndarray
    digits: np.ndarray
    photographs: list[Image.Image]
    digits_per_image: tuple[int, int] = (1, 6)
    digit_height: tuple[float, float] = (0.16, 0.40)  # of the image's shorter side


def make_digits(
    output_dir: str | Path,
    train: int = 1600,
    val: int = 150,
    size: tuple[int, int] = (224, 224),
    seed: int = 0,
    sources: dict[str, DigitSource] | None = None,
) -> dict[str, Path]:
    """Write the data set: `images/{train,val}/*.jpg` and `annotations/instances_{train,val}.json`.

    Args:
        output_dir: Folder to write to; created where missing, files of the same names are replaced.
        train, val: Number of images.
        size: Width and height of every image in pixels.
        seed: The same seed gives the same images; image i does not depend on their number.
        sources: What `train` and `val` draw from; `digit_sources(seed)` by default.

    Returns:
        The annotation file of each split.

    Raises:
        ValueError: A split would be empty or the images are too small for a legible digit.
    """
    if train < 1 or val < 1:
        raise ValueError(f"Each split needs at least one image, got {train} for training and {val} for validation.")
    if min(size) < 64:
        raise ValueError(f"Images of {size[0]} x {size[1]} are too small for legible digits: use at least 64 x 64.")
    output_dir = Path(output_dir)
    sources = sources or digit_sources(seed)
    counts = {"train": train, "val": val}
    return {
        split: _write_split(output_dir, split, sources[split], counts[split], size, [seed, number])
        for number, split in enumerate(counts)
    }


def digit_sources(seed: int) -> dict[str, DigitSource]:
    """Load scikit-learn's photographs, and its scans divided into a training and a validation part."""
    try:
        from sklearn.datasets import load_digits, load_sample_images
    except ImportError as error:
        raise ImportError("The digits come with scikit-learn: `pip install 'sap-detr-hf[demo]'`.") from error
    scans = load_digits()
    order = np.random.default_rng(seed).permutation(len(scans.target))
    number_val = int(len(order) * VALIDATION_SHARE)
    photographs = [Image.fromarray(photograph) for photograph in load_sample_images().images]
    chosen = {"train": order[number_val:], "val": order[:number_val]}
    return {
        split: DigitSource(
            scans=scans.images[indices].astype(np.float32) / 16,
            digits=scans.target[indices],
            photographs=photographs,
        )
        for split, indices in chosen.items()
    }


def make_picture(
    source: DigitSource, size: tuple[int, int], rng: np.random.Generator
) -> tuple[Image.Image, list[tuple[int, list[int]]]]:
    """Return an image of `size` (width, height) and its digits: (digit, [x, y, width, height] around the ink)."""
    canvas = np.array(_background(source, size, rng), dtype=np.float32)  # (height, width, 3)
    found: list[tuple[int, list[int]]] = []
    for _ in range(rng.integers(source.digits_per_image[0], source.digits_per_image[1] + 1)):
        index = rng.integers(len(source.digits))
        opacity = _ink(source, source.scans[index], min(size), rng)  # (box height, box width), 0..1
        place = _free_place(opacity.shape, size, [box for _, box in found], rng)
        if place is not None:
            _paint(canvas, opacity, place, rng)
            found.append((int(source.digits[index]), [*place, opacity.shape[1], opacity.shape[0]]))
    return Image.fromarray(canvas.round().astype(np.uint8)), found


def _background(source: DigitSource, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    photograph = source.photographs[rng.integers(len(source.photographs))]
    largest = min(photograph.width / size[0], photograph.height / size[1])
    scale = largest * rng.uniform(0.6, 1.0)
    width, height = scale * size[0], scale * size[1]
    left, top = rng.uniform(0, photograph.width - width), rng.uniform(0, photograph.height - height)
    crop = photograph.resize(size, Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop


def _ink(source: DigitSource, scan: np.ndarray, shorter_side: int, rng: np.random.Generator) -> np.ndarray:
    """Enlarge a scan smoothly into opaque strokes with soft edges, cut tightly around what is visible."""
    height = shorter_side * np.exp(rng.uniform(*np.log(source.digit_height)))
    width = height * rng.uniform(*DIGIT_WIDENING)
    padded = np.pad(scan, 1)  # (10, 10): strokes that touch the scan's edge get a round end too
    enlarged = Image.fromarray(padded).resize((round(width * 10 / 8), round(height * 10 / 8)), Image.Resampling.BICUBIC)
    opacity = np.clip((np.asarray(enlarged) - INK_EDGES[0]) / (INK_EDGES[1] - INK_EDGES[0]), 0, 1)
    rows, columns = np.nonzero(opacity >= 0.5)
    return opacity[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def _free_place(
    shape: tuple[int, ...], size: tuple[int, int], taken: list[list[int]], rng: np.random.Generator
) -> tuple[int, int] | None:
    """Left and top of a place away from all taken boxes; None where 50 tries find none."""
    height, width = shape
    for _ in range(50):
        left = int(rng.integers(0, size[0] - width + 1))
        top = int(rng.integers(0, size[1] - height + 1))
        if all(
            left + width + GAP <= x or x + w + GAP <= left or top + height + GAP <= y or y + h + GAP <= top
            for x, y, w, h in taken
        ):
            return left, top
    return None


def _paint(canvas: np.ndarray, opacity: np.ndarray, place: tuple[int, int], rng: np.random.Generator) -> None:
    left, top = place
    patch = canvas[top : top + opacity.shape[0], left : left + opacity.shape[1]]
    patch += opacity[..., None] * (_contrasting_color(patch, rng) - patch)


def _contrasting_color(patch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Tinted white on dark and tinted black on bright parts of a photograph."""
    tint = rng.uniform(0, INK_TINT, size=3).astype(np.float32)
    return tint if float(patch.mean()) > 128 else 255 - tint


def _write_split(
    output_dir: Path, split: str, source: DigitSource, count: int, size: tuple[int, int], seed: list[int]
) -> Path:
    folder = output_dir / "images" / split
    folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for image_id in range(1, count + 1):
        picture, digits = make_picture(source, size, np.random.default_rng([*seed, image_id]))
        name = f"{image_id:06d}.jpg"
        picture.save(folder / name, quality=92)
        images.append({"id": image_id, "file_name": name, "width": size[0], "height": size[1]})
        annotations += [_annotation(image_id, digit, box) for digit, box in digits]
    numbered = [{"id": number, **annotation} for number, annotation in enumerate(annotations, start=1)]
    path = output_dir / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": numbered, "categories": CATEGORIES}))
    return path


def _annotation(image_id: int, digit: int, box: list[int]) -> dict[str, object]:
    category_id = CATEGORIES[digit]["id"]
    return {"image_id": image_id, "category_id": category_id, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
