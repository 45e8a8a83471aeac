"""What the page does with one picture: read the visitor's file, detect, and draw what was found."""

import os
import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..drawing import draw_detections
from ..explain.explain import explain_detection
from ..explain.explanation import Explanation
from ..explain.figures import blend_heat, heat_over_image
from ..inference.detector import Detector, SalientDetections
from ..inference.results import readable_detections
from ..model.image_files import ImageFileError, open_image, upright_size

MAX_PIXELS = 2**26  # 0.2 GB as 8-bit RGB
LOWEST_SCORE = 0.05  # of what is kept for the threshold slider
MOST_DETECTIONS = 100
SLICE_SIZES = (256, 512, 640, 1024)  # pixels
MOST_SLICES = 100  # of one picture
SHOWN_SIDES = (640, 1280)  # pixels of the longer side: small pictures are enlarged, or names would cover them


class PictureError(ValueError):
    """A file that cannot be used; the message is for the visitor who chose it."""


class DetectionError(PictureError):
    """A good picture in which detection fails as it is set; the message is for the visitor."""


@dataclass
class PictureDetections:
    """A visitor's picture and what was found in it: every threshold and every drawing starts from here.

    Args:
        path: the uploaded file.
        name: what the visitor calls it.
        size: width and height of the upright picture in pixels.
        shown: the picture at the size it is shown at.
        detections: all above `LOWEST_SCORE`, best first, in pixels of `size`.
        seconds: what image processor and model took.
        explained: the detections asked for so far, by position in `detections`: how the query came to its box.
    """

    path: str
    name: str
    size: tuple[int, int]
    shown: Image.Image
    detections: SalientDetections
    seconds: float
    explained: dict[int, Explanation] = field(default_factory=dict)

    def above(self, threshold: float) -> SalientDetections:
        """The detections of a higher score than `threshold`: the first of `detections`."""
        return self.detections.select(torch.arange(int((self.detections.scores > threshold).sum())))


class PictureDetector:
    """A model and its image processor, see [`load_detector`], run for one visitor at a time."""

    def __init__(self, model: Any, image_processor: Any):
        self.model, self.image_processor = model, image_processor
        self.detector = Detector(model, image_processor, LOWEST_SCORE, MOST_DETECTIONS)
        self._one_at_a_time = threading.Lock()

    def detect(self, path: str, name: str, slice_size: int | None = None) -> PictureDetections:
        """Detect objects in a visitor's file, on request in slices of so many pixels.

        Raises:
            PictureError: the file cannot be used.
            DetectionError: there would be too many slices, or the model fails.
        """
        image = open_picture(path, name)
        with self._one_at_a_time:
            started = time.monotonic()
            try:
                found = self._detector_for(image, name, slice_size).detect(image, name)
            except (ImportError, ValueError) as error:  # ImportError: OpenCV, which slices need, is broken
                raise DetectionError(str(error)) from error
            seconds = time.monotonic() - started
        return PictureDetections(path, name, image.size, _for_the_screen(image), found, seconds)

    def _detector_for(self, image: Image.Image, name: str, slice_size: int | None) -> Any:
        if slice_size is None:
            return self.detector
        from ..inference.slices import SlicedDetector

        sliced = SlicedDetector(self.detector, slice_size, batch_size=4, top_k=MOST_DETECTIONS)
        slices = sliced.count(image.size)
        if slices > MOST_SLICES:
            raise ValueError(
                f"{name} would be cut into {slices} slices of {slice_size} pixels, and {MOST_SLICES} are the limit. "
                "Choose larger slices, or none."
            )
        return sliced

    def attend(self, picture: PictureDetections, chosen: int) -> None:
        """Fill in where the query of the detection at position `chosen` looked, unless it is known already.

        Raises:
            PictureError: the uploaded file is no longer there, or the detection comes from a slice.
        """
        if chosen in picture.explained:
            return
        if picture.detections.queries[chosen] < 0:
            raise PictureError("This detection comes from a slice: attention is shown of the whole picture alone.")
        image = open_picture(picture.path, picture.name)
        query = int(picture.detections.queries[chosen])
        with self._one_at_a_time:
            explained = explain_detection(self.model, self.image_processor, image, query=query)
        picture.explained[chosen] = replace(explained, image=picture.shown)  # the upload may have 200 MB


def open_picture(path: str, name: str) -> Image.Image:
    """A visitor's file as upright RGB, called `name` in messages.

    Raises:
        PictureError: it is gone, empty, too large, broken, or no picture.
    """
    try:
        if os.path.getsize(path) == 0:
            raise PictureError(f"{name} is empty. Please choose another picture.")
        width, height, _ = upright_size(path)
    except FileNotFoundError:
        raise PictureError(f"{name} is no longer kept here. Please choose it again.") from None
    except ImageFileError as error:
        if isinstance(error.__cause__, Image.DecompressionBombError):
            raise PictureError(f"{name} is far too large: {_limit()}") from error
        raise PictureError(
            f"{name} is not a picture that can be read here. JPEG, PNG, WebP, AVIF, GIF, TIFF and BMP can."
        ) from error
    if width * height > MAX_PIXELS:
        raise PictureError(f"{name} has {width} x {height} pixels: {_limit()}")
    try:
        return open_image(path, max_pixels=MAX_PIXELS)
    except ImageFileError as error:
        raise PictureError(f"{name} is broken or incomplete. Please choose another picture.") from error


def draw_picture(
    picture: PictureDetections, threshold: float, points: bool = False, chosen: int | None = None
) -> Image.Image:
    """The picture as it is shown.

    Args:
        picture: what was found.
        threshold: only detections above it are drawn.
        points: draw each detection's salient point.
        chosen: position of a detection that is explained: only this detection is drawn, with its point, the distances
            to the four sides, the cell that the point cannot leave and the places that the attention was led to; and
            the picture glows where its query looked.
    """
    found, image = picture.above(threshold), picture.shown
    if chosen is not None:
        found, points = picture.detections.select(torch.tensor([chosen])), True
        image = _glowing(picture, picture.explained[chosen])
    scale = torch.tensor(image.size) / torch.tensor(picture.size)  # width, height
    drawn = draw_detections(
        image, found.boxes * scale.repeat(2), found.labels, found.scores, found.points * scale if points else None
    )
    if chosen is not None:
        _draw_query(ImageDraw.Draw(drawn), picture.explained[chosen], scale.numpy())
    return drawn


def _draw_query(draw: ImageDraw.ImageDraw, explained: Explanation, scale: np.ndarray) -> None:
    """Draw the sides and the cell of a query, and where its heads looked; `scale` from the picture to what is shown."""
    (x, y), (left, top, right, bottom) = explained.points[-1] * scale, explained.boxes[-1] * [*scale, *scale]
    for line in ((left, y, right, y), (x, top, x, bottom)):
        draw.line(line, fill="white", width=1)
    draw.rectangle((explained.cells[explained.query] * [*scale, *scale]).tolist(), outline="yellow", width=1)
    for column, row in (explained.looked_at * scale).tolist():
        draw.rectangle((column - 1, row - 1, column + 1, row + 1), fill="cyan")


def detection_rows(found: SalientDetections) -> list[list]:
    """A table's rows: number from 1, name, score, the box as left, top, right, bottom, the salient point as x, y."""
    return [
        [i + 1, found.labels[i], f"{found.scores[i]:.2f}", _rounded(found.boxes[i]), _rounded(found.points[i])]
        for i in range(len(found))
    ]


def detections_record(picture: PictureDetections, threshold: float) -> dict[str, Any]:
    """What is downloaded: the picture and its detections above the threshold."""
    return {
        "image": picture.name,
        "width": picture.size[0],
        "height": picture.size[1],
        "threshold": threshold,
        "detections": readable_detections(picture.above(threshold)),
    }


def _glowing(picture: PictureDetections, explained: Explanation) -> Image.Image:
    """The picture, bright where the heads' mean attention in the last layer is high."""
    covered = [
        length * shown / size
        for length, shown, size in zip(explained.map_size, picture.shown.size, picture.size, strict=True)
    ]
    heat = heat_over_image(explained.attention.mean(0), picture.shown.size, (covered[0], covered[1]))
    return blend_heat(picture.shown, heat / max(float(heat.max()), 1e-12))


def _for_the_screen(image: Image.Image) -> Image.Image:
    side = max(image.size)
    scale = min(max(side, SHOWN_SIDES[0]), SHOWN_SIDES[1]) / side
    shown = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    shown.info = {}  # a photograph's EXIF, which may say where it was taken, is not handed on
    return shown


def _rounded(values: torch.Tensor) -> str:
    return ", ".join(str(round(value)) for value in values.tolist())


def _limit() -> str:
    return f"at most {MAX_PIXELS // 10**6} million pixels are accepted. Please shrink it."
