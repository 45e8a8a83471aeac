"""Write the results of a prediction to its folder, image by image."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from PIL import Image

from ..drawing import draw_detections
from .detector import SalientDetections
from .sources import InputImage, short_name

FILES = ("detections.jsonl", "predictions.json", "failed.jsonl")
PICTURES = "pictures"
JPEG_QUALITY = 90
LEAST_SIDE = 400  # pixels: smaller images are enlarged before drawing


class PredictionResults:
    """Writes the results; a context manager, whose files are whole also after an error or an interruption.

    * `detections.jsonl`: one JSON record a line and image: `file`, `image_id`, `frame` (of videos), `width`, `height`,
      `picture` (where drawn) and `detections`, see [`readable_detections`];
    * `predictions.json`: COCO results, a list of `image_id`, `category_id`, `bbox` x, y, width, height, `score`;
    * `failed.jsonl`: `file`, `frame` and `error` of what could not be predicted;
    * `pictures/`: JPEGs with boxes, names and points, small images enlarged.

    Args:
        output: an existing folder.
        category_ids: the data set's own id of each class index; None where the class index is that id.
        draw: whether to write images with boxes.
    """

    def __init__(self, output: Path, category_ids: Sequence[int] | None = None, draw: bool = True):
        self.output = output
        self.category_ids = category_ids
        self.draw = draw
        self.images = self.detections = self.failed = 0
        if draw:
            (output / PICTURES).mkdir(exist_ok=True)

    def __enter__(self) -> "PredictionResults":
        self._records, self._coco, self._failures = (self._open(name) for name in FILES)
        self._coco.write("[")
        return self

    def __exit__(self, *error: object) -> None:
        self._coco.write("\n]\n")
        for file in (self._records, self._coco, self._failures):
            file.close()

    def add(self, source: InputImage, image_id: int | str, image: Image.Image, found: SalientDetections) -> None:
        """Write one image's detections."""
        record = {"file": source.name, "image_id": image_id, **_frame(source)}
        record |= {"width": image.width, "height": image.height}
        if self.draw:
            record["picture"] = self._draw(source, image_id, image, found)
        self._write(self._records, {**record, "detections": readable_detections(found)})
        # Unrounded: the same AP as `sap-detr evaluate`
        columns = found.classes.tolist(), found.coco_boxes.tolist(), found.scores.tolist()
        for index, box, score in zip(*columns, strict=True):
            category_id = index if self.category_ids is None else self.category_ids[index]
            result = {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
            self._coco.write((",\n" if self.detections else "\n") + json.dumps(result))
            self.detections += 1
        self.images += 1

    def fail(self, source: InputImage, error: Exception) -> None:
        """Note an image that could not be predicted."""
        self._write(self._failures, {"file": source.name, **_frame(source), "error": str(error)})
        self.failed += 1

    def _open(self, name: str) -> TextIO:
        # A file name that is no UTF-8 holds surrogates; written as escapes, they are JSON and give the name back.
        return (self.output / name).open("w", encoding="utf-8", errors="backslashreplace")

    @staticmethod
    def _write(file: TextIO, record: dict[str, Any]) -> None:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")
        file.flush()  # can be read while the prediction runs

    def _draw(self, source: InputImage, image_id: int | str, image: Image.Image, found: SalientDetections) -> str:
        picture = draw_detections(image, found.boxes, found.labels, found.scores, found.points, least_side=LEAST_SIDE)
        name = short_name(source.name)
        if source.frame is not None:
            name = f"{name}_{source.frame:06d}"
        while True:
            try:
                file = (self.output / PICTURES / f"{name}.jpg").open("xb")
                break
            except FileExistsError:  # another folder's file of the same name; no list of names has to be kept
                name = f"{name}_{short_name(str(image_id))}"
        with file:
            picture.save(file, format="JPEG", quality=JPEG_QUALITY)
        return f"{PICTURES}/{name}.jpg"


def readable_detections(found: SalientDetections) -> list[dict[str, Any]]:
    """Detections for JSON as the pipeline words them, with their points.

    Returns:
        Of each: `score`, `label`, `box` (`xmin`, `ymin`, `xmax`, `ymax`) and `point` (`x`, `y`), in pixels.
    """
    columns = (found.scores.tolist(), found.labels, found.boxes.tolist(), found.points.tolist())
    return [
        {
            "score": round(score, 4),
            "label": label,
            "box": _rounded(("xmin", "ymin", "xmax", "ymax"), box),
            "point": _rounded(("x", "y"), point),
        }
        for score, label, box, point in zip(*columns, strict=True)
    ]


def _frame(source: InputImage) -> dict[str, Any]:
    return {} if source.frame is None else {"frame": source.frame}


def _rounded(names: Sequence[str], pixels: Sequence[float]) -> dict[str, float]:
    return {name: round(value, 2) for name, value in zip(names, pixels, strict=True)}
