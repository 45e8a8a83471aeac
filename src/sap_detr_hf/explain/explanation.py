"""Record how a model computes one detection: point, sides and boxes of each layer, and the attention of each head.

Everything comes from one ordinary forward pass: the model's outputs, and forward hooks on the side-directed Gaussian
and on the cross-attention, or on SAP-DINO-DETR's sampling. Drawing is in `figures.py`. Letters in shape comments:
D decoder layers, N queries, H heads, L levels and M sampling points of SAP-DINO-DETR, h and w rows and columns of the
feature map, T true boxes. All positions are pixels of the upright image.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from transformers.image_transforms import corners_to_center_format

from ..evaluation_mode import evaluation_mode
from ..inference.detector import Detector, SalientDetections, label_name, prepare_batch
from ..model.loss import LayerPredictions, corners_from_boxes, match_queries, pad_targets
from ..model.modeling_sap_detr import SapDetrForObjectDetection
from ..model.modeling_sap_dino_detr import SapDinoDetrForObjectDetection
from .sampling import SamplingObservation


@dataclass
class Explanation:
    """How one query came to its box.

    Args:
        image: the upright RGB image.
        detections: all detections of the image above the threshold, best first.
        query: index of the explained query, row-major in the grid.
        label: name of the explained class: the detection's, or the query's best.
        layer: the decoder layer (0 = first) of `gaussian` and `attention`.
        scores: (D,) probability of the class after each layer.
        points: (D, 2) x, y of the salient point after each layer.
        boxes: (D, 4) x1, y1, x2, y2 after each layer. The last point and box are the detection's.
        sides: (D, 4) distances left, top, right, bottom from the point to the box's sides after each layer.
        entered_points: (D, 2) the point that each layer started from; the first lies where points start in their cell.
        entered_sides: (D, 4) the distances that each layer started from: the Gaussian leads along them.
        reference_points: (N, 2) x, y, every query's fixed point: the upper left corner of its cell.
        cells: (N, 4) x1, y1, x2, y2 of the queries' cells; a point never leaves its cell.
        cell_levels: (N,) int64, the level of the feature pyramid that each cell belongs to, 0 = finest.
        cell_size: width and height of the explained query's cell.
        attention: (H, h, w) cross-attention weights, the sum of each head is 1; 0 in the padding.
        map_size: width and height of what the h x w map covers, from the image's upper left corner. Larger than the
            image where the processor pads. As in the model, the map is stretched evenly over its input.
    """

    image: Image.Image
    detections: SalientDetections
    query: int
    label: str
    layer: int
    scores: np.ndarray
    points: np.ndarray
    boxes: np.ndarray
    sides: np.ndarray
    entered_points: np.ndarray
    entered_sides: np.ndarray
    reference_points: np.ndarray
    cells: np.ndarray
    cell_levels: np.ndarray
    cell_size: tuple[float, float]
    attention: np.ndarray
    map_size: tuple[float, float]

    heads: ClassVar[str]
    """What leads the heads: name of the figure that shows it."""


@dataclass
class GaussianExplanation(Explanation):
    """How a query of SAP-DETR came to its box.

    Args:
        gaussian: (H, h, w) the side-directed Gaussian's weights in [0, 1], by which attention is multiplied before it
            is normalized.
        gaussian_centers: (H, 2) x, y of each head's Gaussian, between the entered point and the sides it started from.
        gaussian_widths: (H, 2) its standard deviations along x and y.
    """

    heads: ClassVar[str] = "gaussian"
    gaussian: np.ndarray
    gaussian_centers: np.ndarray
    gaussian_widths: np.ndarray


@dataclass
class SamplingExplanation(Explanation):
    """How a query of SAP-DINO-DETR came to its box; `attention` is the sampling as a map, see [`attention_map`].

    Args:
        sampling_points: (H, L, M, 2) x, y of each head's points on each level, which may lie outside the image.
        sampling_weights: (H, L, M) their weights; the sum of each head is 1.
    """

    heads: ClassVar[str] = "sampling"
    sampling_points: np.ndarray
    sampling_weights: np.ndarray


@dataclass
class MatchingExplanation:
    """Which query learns which true box, at every decoder layer, as the training loss matches them.

    Args:
        image: the upright RGB image.
        true_boxes: (T, 4) x1, y1, x2, y2.
        true_labels: T names.
        queries: (D, T) int64, the query matched to each true box.
        points: (D, T, 2) x, y of the matched queries' points.
        boxes: (D, T, 4) x1, y1, x2, y2 of the matched queries' boxes.
        cells: (D, T, 4) x1, y1, x2, y2 of the matched queries' cells.
        all_cells, cell_levels: see [`Explanation`]'s.
    """

    image: Image.Image
    true_boxes: np.ndarray
    true_labels: list[str]
    queries: np.ndarray
    points: np.ndarray
    boxes: np.ndarray
    cells: np.ndarray
    all_cells: np.ndarray
    cell_levels: np.ndarray


def observation_of(model: Any, layer: int) -> Any:
    """What watches a decoder layer of a model while it runs, by the model's class.

    Raises:
        ValueError: the model does not have what explanations draw.
    """
    if isinstance(model, SapDinoDetrForObjectDetection):
        return SamplingObservation(model, layer, SamplingExplanation)
    if not isinstance(model, SapDetrForObjectDetection):
        kind = model.config.model_type
        raise ValueError(f"Explanations draw the cells of sap_detr and sap_dino_detr models: a {kind} model has none.")
    if not model.config.side_directed_gaussian:
        raise ValueError(
            "The model has no side-directed Gaussian (`side_directed_gaussian` is off), which an explanation shows."
        )
    return GaussianObservation(model, layer)


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


class GaussianObservation:
    """The side-directed Gaussian and the attention of a decoder layer, seen while the model runs inside [`watching`].

    Attributes:
        seen: one dict per decoder layer: its points and sides, the map's shape. That of `layer` has `gaussian` and
            `attention`, (B, H, N, h * w), too, and the Gaussians' `centers` and `widths`, (B, N, H, 2), in feature-map
            pixels.
    """

    explanation = GaussianExplanation

    def __init__(self, model: SapDetrForObjectDetection, layer: int):
        self.model, self.layer = model, layer
        self.seen: list[dict[str, Any]] = [{} for _ in model.model.decoder.layers]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See one run of the model, with eager attention, which alone has weights; afterwards it is as it was."""
        model, seen = self.model, self.seen
        decoder_layers = model.model.decoder.layers

        def see_gaussian(index: int, module: Any, arguments: tuple, bias: torch.Tensor) -> None:
            hidden_states, points, sides, extent, _, map_shape = arguments
            seen[index] |= {"points": points, "sides": sides, "map_shape": map_shape}
            if index == self.layer:
                centers, inverse_width = module.place(module.proj(hidden_states), points, sides, extent)
                widths = 2 / inverse_width.abs().clamp(min=1e-6)  # standard deviations: exp(-(d a)^2 / 8)
                seen[index] |= {"gaussian": bias, "centers": centers, "widths": widths}

        def see_attention(module: torch.nn.Module, arguments: tuple, output: tuple) -> None:
            seen[self.layer]["attention"] = output[1]

        implementation = model.config._attn_implementation
        hooks = [each.gaussian.register_forward_hook(partial(see_gaussian, i)) for i, each in enumerate(decoder_layers)]
        hooks.append(decoder_layers[self.layer].cross_attn.register_forward_hook(see_attention))
        model.set_attn_implementation({"": "eager"})  # the backbone keeps its own
        try:
            with evaluation_mode(model):
                yield
        finally:
            model.set_attn_implementation({"": implementation})
            for hook in hooks:
                hook.remove()

    def entered(self, outputs: Any, query: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Points (D, 2) and sides (D, 4) that each layer started from, in [0, 1]."""
        points, sides = (torch.stack([layer[name][0, query] for layer in self.seen]) for name in ("points", "sides"))
        return points, sides

    def cells(self, outputs: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Corners and sizes (N, 2) in [0, 1] and levels (N,) of the queries' cells: a grid."""
        rows, columns = self.model.model.query_points.grid
        corners = self.model.model.query_points()
        sizes = corners.new_tensor([1 / columns, 1 / rows]).expand_as(corners)
        return corners, sizes, torch.zeros(len(corners), dtype=torch.int64)

    def maps(self, query: int, inputs: dict[str, torch.Tensor], size: tuple[int, int]) -> dict[str, Any]:
        """The Gaussian and the attention of a query: see `GaussianExplanation`."""
        seen, map_size = self.seen[self.layer], _map_size(inputs, size)
        rows, columns = seen["map_shape"]
        token_size = np.array(map_size, dtype=np.float32) / [columns, rows]
        return {
            "gaussian": _array(seen["gaussian"][0, :, query].float().exp()).reshape(-1, rows, columns),
            "gaussian_centers": _array(seen["centers"][0, query]) * token_size,
            "gaussian_widths": _array(seen["widths"][0, query]) * token_size,
            "attention": _array(seen["attention"][0, :, query]).reshape(-1, rows, columns),
            "map_size": map_size,
        }


def _layer_boxes(predictions: dict[str, torch.Tensor], image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (D, N, 4) x1, y1, x2, y2 and points (D, N, 2) in pixels, of a batch of one image."""
    boxes = corners_from_boxes(predictions["pred_boxes"][:, 0].float())  # (D, N, 4) in [0, 1]
    return _array(boxes) * _scale(image, 2), _array(predictions["pred_points"][:, 0]) * _scale(image, 1)


def _cells(observation: Any, outputs: Any, image: Image.Image) -> dict[str, np.ndarray]:
    corners, sizes, levels = observation.cells(outputs)
    upper_left = _array(corners) * _scale(image, 1)
    cells = np.concatenate([upper_left, upper_left + _array(sizes) * _scale(image, 1)], axis=-1)
    return {"reference_points": upper_left, "cells": cells, "cell_levels": levels.cpu().numpy()}


def _map_size(inputs: dict[str, torch.Tensor], size: tuple[int, int]) -> tuple[float, float]:
    """Width and height of the model's whole input, padding included, in pixels of an image of `size`."""
    height, width = inputs["pixel_values"].shape[-2:]
    mask = inputs.get("pixel_mask")
    valid_height = height if mask is None else int(mask[0].any(1).sum())
    valid_width = width if mask is None else int(mask[0].any(0).sum())
    return size[0] * width / valid_width, size[1] * height / valid_height


def _scale(image: Image.Image, repeats: int) -> np.ndarray:
    return np.array(image.size * repeats, dtype=np.float32)


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()
