"""Explain a detection and write the figures and numbers to a folder."""

import json
from pathlib import Path
from typing import Any

from sap_detr_cli.settings.explain import ExplanationSettings

from ..data.coco import read_coco
from ..data.findings import ERRORS, FILE_ERRORS, check_boxes, check_image_ids
from ..files import prepare_folder
from ..inference.sources import InputImages
from ..weights.pretrained import check_device_and_dtype, load_detector
from .explain import explain_detection, explain_matching, observation_of
from .explanation import Explanation, MatchingExplanation
from .figures import (
    draw_attention,
    draw_explanation,
    draw_heads,
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
    "attention.png": draw_attention,
}
HEADS = ("gaussian.png", "sampling.png")  # of which an explanation has one
NUMBERS, MATCHING = "explanation.json", "matching.png"


def explain_image(settings: ExplanationSettings) -> Explanation:
    """Explain a detection and write `FIGURES`, the heads' figure, explanation.json, and with annotations matching.png.

    Raises:
        OSError, ValueError: a model, image, annotation file or folder that cannot be used, no such detection.
    """
    check_device_and_dtype(settings.device)
    model: Any
    model, image_processor = load_detector(settings.model, settings.device)
    observation_of(model, 0)
    image = next(iter(InputImages([settings.image]))).load()
    matching = None
    if settings.annotations is not None:
        truth = true_boxes(Path(settings.annotations), Path(settings.image), model.config.category_ids)
        matching = explain_matching(model, image_processor, image, *truth)
    explanation = explain_detection(
        model,
        image_processor,
        image,
        detection=settings.detection or 0,
        query=settings.query,
        threshold=settings.threshold,
        layer=settings.layer,
    )
    output = Path(settings.output)
    prepare_folder(output, settings.overwrite, results=(*FIGURES, *HEADS, NUMBERS, MATCHING))
    for name, draw in FIGURES.items():
        draw(explanation).save(output / name, optimize=True)
    draw_heads(explanation).save(output / f"{explanation.heads}.png", optimize=True)
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
    coco = read_coco(annotation_file)
    check_image_ids(coco.findings, coco.image_ids, lambda place: coco.file_names[place])
    check_boxes(coco.findings, coco.boxes, coco.image_ids, coco.sizes, None)
    coco.findings.refuse_errors(annotation_file, ERRORS.keys() - FILE_ERRORS - {"no categories"}, "explained")
    places = [i for i, name in enumerate(coco.file_names) if Path(name.replace("\\", "/")).name == image.name]
    if len(places) != 1:
        raise ValueError(f"{annotation_file} lists {len(places)} images named {image.name}, not one.")
    own = (coco.boxes.image == places[0]) & ~coco.boxes.crowd
    corners = coco.boxes.boxes[own]  # (n, 4) x, y, width, height
    corners[:, 2:] += corners[:, :2]
    boxes, categories = corners.tolist(), coco.boxes.category[own].tolist()
    known = {category_id: index for index, category_id in enumerate(category_ids or [])}
    unknown = [category_id for category_id in categories if category_ids is not None and category_id not in known]
    if unknown:
        raise ValueError(f"{annotation_file}: category {unknown[0]} is not among the model's {sorted(known)}.")
    return boxes, [known.get(category_id, category_id) for category_id in categories]


def explanation_numbers(explanation: Explanation, matching: MatchingExplanation | None) -> dict[str, Any]:
    """The explanation without image and maps, ready for JSON; positions in pixels."""
    per_layer = ("scores", "points", "boxes", "sides", "entered_points", "entered_sides")
    numbers: dict[str, Any] = {name: getattr(explanation, name) for name in ("query", "label", "layer", "cell_size")}
    numbers["level"] = int(explanation.cell_levels[explanation.query])
    numbers["reference_point"] = explanation.reference_points[explanation.query].tolist()
    numbers |= {name: getattr(explanation, name).tolist() for name in per_layer}
    if matching is not None:
        numbers["matching"] = {
            "true_labels": matching.true_labels,
            "true_boxes": matching.true_boxes.tolist(),
            "queries": matching.queries.tolist(),
        }
    return numbers
