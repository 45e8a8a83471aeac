"""An explanation from model and image to a folder of pictures and numbers."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from ..files import prepare_folder
from ..inference.predict import load_detector
from ..inference.sources import InputImages
from ..weights.pretrained import check_device_and_dtype
from .explanation import Explanation, MatchingExplanation, check_explainable, explain_detection, explain_matching
from .figures import (
    draw_attention,
    draw_explanation,
    draw_gaussian,
    draw_layers,
    draw_matching,
    draw_reference_points,
    draw_sides,
)

FIGURES = {
    "explanation.png": draw_explanation,
    "reference_points.png": draw_reference_points,
    "sides.png": draw_sides,
    "layers.png": draw_layers,
    "gaussian.png": draw_gaussian,
    "attention.png": draw_attention,
}
NUMBERS, MATCHING = "explanation.json", "matching.png"


@dataclass(frozen=True)
class ExplanationSettings:
    """What is explained; the text beside a field is its reason.

    Raises:
        ValueError: the device is none of those offered, or not here.
    """

    model: Annotated[str, "model directory or Hub id"]
    image: Annotated[str, "file or http(s) address"]
    output: Annotated[str, "folder that gets the pictures"]
    detection: Annotated[int, "which detection, 0 = the best"] = 0
    query: Annotated[int | None, "explain this query instead"] = None
    threshold: Annotated[float, "what counts as a detection"] = 0.5
    layer: Annotated[int, "decoder layer of Gaussian and attention, negative from the last"] = -1
    annotations: Annotated[str | None, "COCO JSON with the image's true boxes: draws the matching of training"] = None
    device: Annotated[str, "where the model runs"] = "auto"
    overwrite: Annotated[bool, "replace an earlier explanation in the folder"] = False

    def __post_init__(self):
        check_device_and_dtype(self.device)


def explain_image(settings: ExplanationSettings) -> Explanation:
    """Explain a detection and write `FIGURES`, explanation.json, and with annotations matching.png.

    Raises:
        OSError, ValueError: a model, image, annotation file or folder that cannot be used, no such detection.
    """
    model: Any
    model, image_processor = load_detector(settings.model, settings.device)
    check_explainable(model)
    image = next(iter(InputImages([settings.image]))).load()
    matching = None
    if settings.annotations is not None:
        truth = true_boxes(Path(settings.annotations), Path(settings.image), model.config.category_ids)
        matching = explain_matching(model, image_processor, image, *truth)
    explanation = explain_detection(
        model,
        image_processor,
        image,
        detection=settings.detection,
        query=settings.query,
        threshold=settings.threshold,
        layer=settings.layer,
    )
    output = Path(settings.output)
    prepare_folder(output, settings.overwrite, results=(*FIGURES, NUMBERS, MATCHING))
    for name, draw in FIGURES.items():
        draw(explanation).save(output / name, optimize=True)
    if matching is not None:
        draw_matching(matching).save(output / MATCHING, optimize=True)
    (output / NUMBERS).write_text(json.dumps(explanation_numbers(explanation, matching), indent=2), encoding="utf-8")
    return explanation


def true_boxes(
    annotation_file: Path, image: Path, category_ids: list[int] | None
) -> tuple[list[list[float]], list[int]]:
    """Boxes x1, y1, x2, y2 and class indices of an image in a COCO JSON, found by its file name; no crowd regions.

    Raises:
        ValueError: the file is no such JSON, lists no or several images of this name, or holds an unknown category.
    """
    try:
        content = json.loads(annotation_file.read_bytes())
        ids = [entry["id"] for entry in content["images"] if Path(entry["file_name"]).name == image.name]
        if len(ids) != 1:
            raise ValueError(f"{annotation_file} lists {len(ids)} images of the name {image.name}, not one.")
        found = [each for each in content["annotations"] if each["image_id"] == ids[0] and not each.get("iscrowd")]
        boxes = [[x, y, x + width, y + height] for x, y, width, height in (each["bbox"] for each in found)]
        categories = [int(each["category_id"]) for each in found]
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{annotation_file} is not COCO JSON of objects: {error!r}.") from error
    known = {category_id: index for index, category_id in enumerate(category_ids or [])}
    unknown = [category_id for category_id in categories if category_ids is not None and category_id not in known]
    if unknown:
        raise ValueError(f"{annotation_file}: category {unknown[0]} is not among the model's {sorted(known)}.")
    return boxes, [known.get(category_id, category_id) for category_id in categories]


def explanation_numbers(explanation: Explanation, matching: MatchingExplanation | None) -> dict[str, Any]:
    """The explanation without image and maps, ready for JSON; positions in pixels."""
    per_layer = ("scores", "points", "boxes", "sides", "entered_points", "entered_sides")
    numbers: dict[str, Any] = {name: getattr(explanation, name) for name in ("query", "label", "layer", "cell_size")}
    numbers["reference_point"] = explanation.reference_points[explanation.query].tolist()
    numbers |= {name: getattr(explanation, name).tolist() for name in per_layer}
    if matching is not None:
        numbers["matching"] = {
            "true_labels": matching.true_labels,
            "true_boxes": matching.true_boxes.tolist(),
            "queries": matching.queries.tolist(),
        }
    return numbers
