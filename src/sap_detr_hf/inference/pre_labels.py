"""Detections as a data set that annotation tools import, so that people correct boxes instead of drawing them."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..data.annotation_writer import WRITERS, AnnotatedImage
from .detector import SalientDetections
from .sources import InputImage, InputImages, short_name

PRE_LABELS = "pre_labels"
SPLIT = "train"  # what the corrected set is for


class PreLabels:
    """Writes the images and their detections, inside a `with` block of `writer`, an [`AnnotationWriter`].

    Args:
        target: The folder of the data set.
        to: "coco", with scores and the data set's own category ids, or "yolo", which has neither.
        sources: The inputs; file names are relative to their folders.
        config: The model's configuration.
    """

    def __init__(self, target: Path, to: str, sources: InputImages, config: Any):
        self.category_ids: Sequence[int] = config.category_ids or sorted(config.id2label)
        names = {self.category_ids[index]: name for index, name in config.id2label.items()}
        self.writer = WRITERS[to](target, names)
        listed = sources.coco_images or []
        folders = [os.path.commonpath([os.path.dirname(image.name) for image in listed])] if listed else []
        self.folders = folders + [text for text in sources.inputs if os.path.isdir(text)]

    def add(self, source: InputImage, image_id: int | str, image: Image.Image, found: SalientDetections) -> None:
        """Write one image; the picture itself where it is no file here."""
        limits = torch.tensor([*image.size, *image.size])
        corners = torch.minimum(found.boxes.clamp(min=0), limits)  # tools refuse what lies outside
        found = dataclasses.replace(found, boxes=corners).select(
            (corners[:, 2:] > corners[:, :2]).all(1).nonzero()[:, 0]
        )
        categories = [self.category_ids[index] for index in found.classes.tolist()]
        file = source.frame is None and os.path.isfile(source.name)
        folder = next((each for each in self.folders if Path(source.name).is_relative_to(each)), None)
        name = os.path.relpath(source.name, folder or os.path.dirname(source.name)) if file else short_name(source.name)
        name += "" if file else f"{'' if source.frame is None else f'_{source.frame:06d}'}.jpg"
        annotated = AnnotatedImage(
            name, source.name if file else image, image_id, image.size, found.coco_boxes.tolist(), categories
        )
        annotated.scores = found.scores.tolist()
        self.writer.add(SPLIT, annotated)
