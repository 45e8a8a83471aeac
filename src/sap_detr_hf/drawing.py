"""Draw boxes, class names and points on images, and arrange images on a contact sheet."""

import colorsys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from PIL import Image, ImageDraw
from transformers.image_transforms import center_to_corners_format

from .fonts import label_font


def draw_detections(
    image: Image.Image,
    boxes: Any,
    labels: Sequence[str],
    scores: Any = None,
    points: Any = None,
    least_side: int = 0,
) -> Image.Image:
    """A copy of the image with boxes, names and points; each name has its own color, the same in every image.

    Args:
        image: Any mode; the result is RGB.
        boxes: (n, 4) x1, y1, x2, y2 in pixels, as tensor, array or lists.
        labels: n names.
        scores: n scores in [0, 1], written behind the names.
        points: (n, 2) x, y in pixels: the salient point of each box.
        least_side: Pixels that the longer side shall have at least: smaller images are enlarged by a whole factor, so
            that names do not cover what they name. 0 keeps the size.

    Raises:
        ValueError: Boxes, labels, scores and points are not equally many.
    """
    corners = _as_lists(boxes)
    score_list = None if scores is None else _as_lists(scores)
    point_list = None if points is None else _as_lists(points)
    for name, values in (("labels", labels), ("scores", score_list), ("points", point_list)):
        if values is not None and len(values) != len(corners):
            raise ValueError(f"There are {len(corners)} boxes but {len(values)} {name}.")
    picture = image.convert("RGB")
    factor = -(-least_side // max(picture.size)) or 1
    if factor > 1:
        picture = picture.resize((picture.width * factor, picture.height * factor))
        corners, point_list = (
            [[value * factor for value in row] for row in rows or []] for rows in (corners, point_list)
        )
    draw = ImageDraw.Draw(picture)
    thickness = max(2, round(min(picture.size) / 250))
    # Large boxes first, so that small ones stay visible; of equals the first, usually the best, comes last.
    for index in sorted(range(len(corners)), key=lambda index: (-_area(corners[index]), -index)):
        _draw_box(draw, corners[index], label_color(labels[index]), thickness)
    for index, box in reversed(list(enumerate(corners))):
        text = labels[index] if score_list is None else f"{labels[index]}: {score_list[index]:.2f}"
        _draw_name(draw, box, text, label_color(labels[index]))
    for index, point in reversed(list(enumerate(point_list or []))):
        _draw_point(draw, point, label_color(labels[index]), radius=2 * thickness)
    return picture


def draw_sample(sample: dict[str, Any], id2label: dict[int, str], image_processor: Any) -> Image.Image:
    """A training sample as an image: pixels as they were before the image processor, boxes from its labels.

    Args:
        sample: `pixel_values` (3, height, width) and `labels` with `class_labels` (n,) and `boxes` (n, 4) cx, cy, w, h
            in [0, 1].
        image_processor: What scaled and normalized the pixels.
    """
    pixel_values, labels = sample["pixel_values"], sample["labels"]
    if image_processor.do_normalize:
        mean, std = (
            pixel_values.new_tensor(v).view(-1, 1, 1) for v in (image_processor.image_mean, image_processor.image_std)
        )
        pixel_values = pixel_values * std + mean
    if image_processor.do_rescale:
        pixel_values = pixel_values / image_processor.rescale_factor
    image = Image.fromarray(pixel_values.round().clamp(0, 255).byte().permute(1, 2, 0).numpy())  # (height, width, 3)
    corners = center_to_corners_format(labels["boxes"]) * labels["boxes"].new_tensor(image.size * 2)
    return draw_detections(image, corners, [id2label[index] for index in labels["class_labels"].tolist()])


def contact_sheet(
    pictures: Sequence[Image.Image], columns: int = 4, cell: tuple[int, int] | None = None, gap: int = 6
) -> Image.Image:
    """Arrange images on a contact sheet, row by row, each fitted into a cell and centered.

    Args:
        cell: Width and height of a cell; default is the largest width and height.
        gap: Pixels between cells.

    Raises:
        ValueError: `pictures` is empty.
    """
    if not pictures:
        raise ValueError("A contact sheet needs at least one image.")
    width, height = cell or (max(p.width for p in pictures), max(p.height for p in pictures))
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), "white")
    for index, picture in enumerate(pictures):
        scale = min(width / picture.width, height / picture.height)
        if cell is None:
            scale = min(1.0, scale)
        fitted = picture.resize((max(1, int(picture.width * scale)), max(1, int(picture.height * scale))))
        left = gap + (index % columns) * (width + gap) + (width - fitted.width) // 2
        top = gap + (index // columns) * (height + gap) + (height - fitted.height) // 2
        sheet.paste(fitted, (left, top))
    return sheet


@lru_cache(maxsize=1024)
def label_color(label: str) -> tuple[int, int, int]:
    """A bright color that depends on the name alone, RGB 0..255."""
    # Python's own hash differs from process to process.
    number = sum(ord(letter) * 29**place for place, letter in enumerate(label))
    hue = number * 0.618033988749895 % 1  # golden ratio: neighboring numbers get distant hues
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, (0.95, 0.65)[number % 2])
    return round(255 * red), round(255 * green), round(255 * blue)


def _as_lists(values: Any) -> list:
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _draw_box(draw: ImageDraw.ImageDraw, box: Sequence[float], color: tuple[int, int, int], thickness: int) -> None:
    left, right = sorted(box[::2])
    top, bottom = sorted(box[1::2])
    # A thin dark rim keeps the box visible on a background of its own color.
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=(0, 0, 0), width=1)
    draw.rectangle((left, top, right, bottom), outline=color, width=thickness)


def _draw_name(draw: ImageDraw.ImageDraw, box: Sequence[float], text: str, color: tuple[int, int, int]) -> None:
    width, height = draw.im.size
    font, text = label_font(text, size=max(9, min(width, height) // 24))
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    text_width, text_height = right - left + 4, bottom - top + 4
    x = max(0, min(box[0], width - text_width))
    y = box[1] - text_height if box[1] >= text_height else min(max(0, box[3]), height - text_height)
    draw.rectangle((x, y, x + text_width, y + text_height), fill=color)
    dark = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] < 140
    draw.text((x + 2 - left, y + 2 - top), text, font=font, fill="white" if dark else "black")


def _draw_point(draw: ImageDraw.ImageDraw, point: Sequence[float], color: tuple[int, int, int], radius: int) -> None:
    x, y = point
    draw.ellipse((x - radius - 2, y - radius - 2, x + radius + 2, y + radius + 2), fill="black")
    draw.ellipse((x - radius - 1, y - radius - 1, x + radius + 1, y + radius + 1), fill="white")
    draw.ellipse((x - radius + 1, y - radius + 1, x + radius - 1, y + radius - 1), fill=color)
