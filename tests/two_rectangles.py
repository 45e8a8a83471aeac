"""A picture of a red and a green rectangle, with their boxes."""

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors

BOXES = [[60.0, 30.0, 160.0, 90.0], [200.0, 120.0, 300.0, 220.0]]  # x1, y1, x2, y2


def picture(width=320, height=240):
    """Black, with one red and one green rectangle where the boxes are."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for channel, (x1, y1, x2, y2) in enumerate(BOXES):
        pixels[int(y1) : int(y2), int(x1) : int(x2), channel] = 255
    return Image.fromarray(pixels)


def target(boxes=BOXES, width=320, height=240):
    boxes = torch.tensor(boxes).reshape(-1, 4)
    return {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
        "class_labels": torch.arange(len(boxes)),
        "area": (boxes[:, 2:] - boxes[:, :2]).prod(1) / 2,
        "iscrowd": torch.zeros(len(boxes), dtype=torch.int64),
    }


def visible_box(image, channel):
    rows, columns = torch.nonzero(image[channel] >= 128, as_tuple=True)
    return torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
