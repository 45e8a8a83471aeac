"""Explain how a model computes one detection, and which queries learn an image's true boxes.

Everything comes from one ordinary forward pass: the model's outputs, and forward hooks on what leads its attention
(`gaussian.py`, `sampling.py`). Drawing is in `figures.py`. Letters in shape comments: D decoder layers, N queries, T
true boxes. All positions are pixels of the upright image.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_transforms import corners_to_center_format

from ..evaluation_mode import evaluation_mode
from ..inference.detector import Detector, SalientDetections, label_name, prepare_batch
from ..model.loss import LayerPredictions, corners_from_boxes, match_queries, pad_targets
from .explanation import Explanation, MatchingExplanation
from .gaussian import GaussianObservation
from .sampling import SamplingObservation

OBSERVATIONS: dict[str, Any] = {"sap_detr": GaussianObservation, "sap_dino_detr": SamplingObservation}
"""What watches a decoder layer while a model runs, by `model_type`."""


@torch.no_grad()
def explain_detection(
    model: Any,
    image_processor: Any,
    image: Image.Image,
    *,
    detection: int = 0,
    query: int | None = None,
    threshold: float = 0.5,
    layer: int = -1,
) -> Explanation:
    """Explain one detection of an image, or one query whether it detected something or not.

    Args:
        model: SAP-DETR or SAP-DINO-DETR for object detection, which is left as it was (mode, attention, hooks).
        image_processor: the model's.
        image: upright RGB, see `image_files.open_image`.
        detection: which detection, 0 = the best.
        query: explain this query instead.
        threshold: what counts as a detection.
        layer: decoder layer of Gaussian and attention, negative from the last.

    Raises:
        ValueError: there is no such detection, query or layer; says how many there are. Or see [`observation_of`].
    """
    depth = model.config.decoder_layers
    if not -depth <= layer < depth:
        raise ValueError(f"layer is {layer}, but the model has the decoder layers 0 to {depth - 1}.")
    layer %= depth
    observation = observation_of(model, layer)
    detector = Detector(model, image_processor, threshold)
    inputs = prepare_batch(image_processor, image)
    with observation.watching():
        outputs = detector.run(inputs)
        predictions = model.predict(outputs, 0)  # per layer, (D, 1, N, ·)
    (detections,) = detector.read(outputs, [image.size], ["the image"])
    if isinstance(detections, ValueError):
        raise detections
    query, class_index = _chosen(outputs.logits[0], detections, detection, query, threshold)
    logits = predictions["logits"][:, 0, query, class_index]  # (D,)
    boxes, points = (values[:, query] for values in _layer_boxes(predictions, image))
    entered_points, entered_sides = map(_array, observation.entered(outputs, query))
    cells = _cells(observation, outputs, image)
    width, height = (cells["cells"][query, 2:] - cells["cells"][query, :2]).tolist()
    return observation.explanation(
        image=image,
        detections=detections,
        query=query,
        label=label_name(model.config.id2label, class_index),
        layer=layer,
        scores=_array(logits.sigmoid()),
        points=points,
        boxes=boxes,
        sides=np.concatenate([points - boxes[:, :2], boxes[:, 2:] - points], axis=-1),
        entered_points=entered_points * _scale(image, 1),
        entered_sides=entered_sides * _scale(image, 2),
        cell_size=(width, height),
        **observation.maps(query, inputs, image.size),
        **cells,
    )


@torch.no_grad()
def explain_matching(
    model: Any, image_processor: Any, image: Image.Image, boxes: Any, classes: Any
) -> MatchingExplanation:
    """Match queries to true boxes as the loss does, at every decoder layer.

    Args:
        model: SAP-DETR or SAP-DINO-DETR for object detection; it is left as it was.
        image_processor: the model's.
        image: upright RGB.
        boxes: (T, 4) x1, y1, x2, y2 of the true boxes in pixels.
        classes: (T,) their class indices.

    Raises:
        ValueError: more boxes than queries, a class that the model does not have, or a box without extent. Or see
            [`observation_of`].
    """
    observation = observation_of(model, 0)
    corners = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    scaled = corners / torch.from_numpy(_scale(image, 2)).float()
    centers: Any = corners_to_center_format(scaled)  # type: ignore[arg-type]  # transformers' own type of tensors
    labels = [{"class_labels": torch.as_tensor(classes, dtype=torch.int64).reshape(-1), "boxes": centers}]
    outputs = Detector(model, image_processor).run(prepare_batch(image_processor, image))
    with evaluation_mode(model):
        predictions = model.predict(outputs, 0)
    layers = LayerPredictions(
        predictions["logits"].float(),
        predictions["pred_boxes"].float(),
        predictions["pred_points"].float(),
        predictions["pred_objectness"].squeeze(-1).float(),
    )
    targets = pad_targets(labels, layers.logits.shape[-1], model.device)
    matches = match_queries(layers, targets, labels, model.config)
    # `match_queries` sorts by query; here a column is a true box.
    queries = np.stack([query[box.argsort()].numpy() for ((query, box),) in matches])  # (D, T)
    predicted_boxes, points = _layer_boxes(predictions, image)
    cells = _cells(observation, outputs, image)
    index = np.arange(len(queries))[:, None]
    return MatchingExplanation(
        image=image,
        true_boxes=corners.numpy(),
        true_labels=[label_name(model.config.id2label, index) for index in labels[0]["class_labels"].tolist()],
        queries=queries,
        points=points[index, queries],
        boxes=predicted_boxes[index, queries],
        cells=cells["cells"][queries],
        all_cells=cells["cells"],
        cell_levels=cells["cell_levels"],
    )


def observation_of(model: Any, layer: int) -> Any:
    """One of [`OBSERVATIONS`] for a decoder layer of a model.

    Raises:
        ValueError: the model does not have what explanations draw.
    """
    kind = model.config.model_type
    if kind not in OBSERVATIONS:
        known = " and ".join(OBSERVATIONS)
        raise ValueError(f"Explanations draw the cells of {known} models: a {kind} model has none.")
    return OBSERVATIONS[kind](model, layer)


def _chosen(
    logits: torch.Tensor, detections: SalientDetections, detection: int, query: int | None, threshold: float
) -> tuple[int, int]:
    """Query and class index to explain."""
    if query is not None:
        if not 0 <= query < len(logits):
            raise ValueError(f"query is {query}, but the model has the queries 0 to {len(logits) - 1}.")
        return query, int(logits[query].argmax())
    if not len(detections):
        raise ValueError(f"No detection has a score above {threshold}: lower the threshold, or choose a query.")
    if not 0 <= detection < len(detections):
        raise ValueError(
            f"There is no detection {detection}: the image has {len(detections)} above the score {threshold}, counted "
            "from 0. Lower the threshold, or choose a query."
        )
    return int(detections.queries[detection]), int(detections.classes[detection])


def _layer_boxes(predictions: dict[str, torch.Tensor], image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (D, N, 4) x1, y1, x2, y2 and points (D, N, 2) in pixels, of a batch of one image."""
    boxes = corners_from_boxes(predictions["pred_boxes"][:, 0].float())  # (D, N, 4) in [0, 1]
    return _array(boxes) * _scale(image, 2), _array(predictions["pred_points"][:, 0]) * _scale(image, 1)


def _cells(observation: Any, outputs: Any, image: Image.Image) -> dict[str, np.ndarray]:
    corners, sizes, levels = observation.cells(outputs)
    upper_left = _array(corners) * _scale(image, 1)
    cells = np.concatenate([upper_left, upper_left + _array(sizes) * _scale(image, 1)], axis=-1)
    return {"reference_points": upper_left, "cells": cells, "cell_levels": levels.cpu().numpy()}


def _scale(image: Image.Image, repeats: int) -> np.ndarray:
    return np.array(image.size * repeats, dtype=np.float32)


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()
