# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Matching and loss of SAP-DETR, for all decoder layers at once.

One cost tensor of shape (layers, batch, queries, most boxes of an image) and one transfer to the CPU serve the
matching of every layer; nothing here needs another synchronization with the device. Letters in shape comments:
D layers, B images, N queries, K classes, T boxes of the fullest image, S boxes of all images.
"""

from dataclasses import dataclass
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import nn
from transformers.utils import is_accelerate_available

from .configuration_sap_detr import SapDetrConfig

IOU_EPS = 1e-6
NON_FINITE_COST = 1e8
UNUSED_COST = 1e9  # of a query that stands for no token
REPORTED_ONLY = {"class_error", "loss_inner_share"}  # nothing learns from these values


@dataclass
class LayerPredictions:
    """What the loss needs of all decoder layers, in float32.

    Args:
        logits: (D, B, N, K) class logits.
        boxes: (D, B, N, 4) center x, center y, width, height in [0, 1].
        points: (D, B, N, 2) x, y in [0, 1].
        objectness: (D, B, N) logits.
        mask: (B, N) bool, False for queries that must not be matched; `None` if there are none.
    """

    logits: torch.Tensor
    boxes: torch.Tensor
    points: torch.Tensor
    objectness: torch.Tensor
    mask: torch.Tensor | None = None


@dataclass
class PaddedTargets:
    """The labels of a batch as rectangular tensors.

    Args:
        classes: (B, T) int64, 0 in the padding.
        corners: (B, T, 4) x1, y1, x2, y2 in [0, 1].
        usable: (B, T) bool, False for a label that no loss can be computed for; True in the padding.
        counts: boxes of each image.
    """

    classes: torch.Tensor
    corners: torch.Tensor
    usable: torch.Tensor
    counts: list[int]


def corners_from_boxes(boxes: torch.Tensor) -> torch.Tensor:
    """(..., 4) center x, center y, width, height -> (..., 4) x1, y1, x2, y2."""
    center, size = boxes.split(2, dim=-1)
    return torch.cat([center - size / 2, center + size / 2], dim=-1)


def iou_and_giou(corners: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Elementwise IoU and generalised IoU of boxes x1, y1, x2, y2 (..., 4) that broadcast; 1e-6 in both divisions."""
    area = (corners[..., 2:] - corners[..., :2]).prod(-1)
    other_area = (other[..., 2:] - other[..., :2]).prod(-1)
    overlap = torch.minimum(corners[..., 2:], other[..., 2:]) - torch.maximum(corners[..., :2], other[..., :2])
    inter = overlap.clamp(min=0).prod(-1)
    union = area + other_area - inter
    iou = inter / (union + IOU_EPS)
    hull = torch.maximum(corners[..., 2:], other[..., 2:]) - torch.minimum(corners[..., :2], other[..., :2])
    hull_area = hull.clamp(min=0).prod(-1)
    return iou, iou - (hull_area - union) / (hull_area + IOU_EPS)


def points_outside(points: torch.Tensor, corners: torch.Tensor) -> torch.Tensor:
    """Whether points x, y (..., 2) lie outside boxes x1, y1, x2, y2 (..., 4); an edge counts as inside."""
    return ((points < corners[..., :2]) | (points > corners[..., 2:])).any(-1)


def pad_targets(labels: list[dict[str, torch.Tensor]], num_labels: int, device: torch.device) -> PaddedTargets:
    """Labels of a batch -> rectangular tensors on `device`, without looking at their values."""
    for label in labels:
        if 4 * len(label["class_labels"]) != label["boxes"].numel():
            raise ValueError(
                f"{_image_name(label)} has {len(label['class_labels'])} class labels but boxes of the shape "
                f"{tuple(label['boxes'].shape)}: it needs one box (center x, center y, width, height) for each."
            )
    counts = [len(label["class_labels"]) for label in labels]
    classes = nn.utils.rnn.pad_sequence([label["class_labels"] for label in labels], batch_first=True)
    classes = classes.to(device).long()  # (B, T)
    boxes = nn.utils.rnn.pad_sequence(
        [label["boxes"].float().reshape(-1, 4) for label in labels], batch_first=True, padding_value=0.5
    ).to(device)  # (B, T, 4)
    usable = (classes >= 0) & (classes < num_labels) & boxes.isfinite().all(-1) & (boxes[..., 2:] > 0).all(-1)
    return PaddedTargets(classes.clamp(0, num_labels - 1), corners_from_boxes(boxes), usable, counts)


def matching_cost(predictions: LayerPredictions, targets: PaddedTargets, config: SapDetrConfig) -> torch.Tensor:
    """Cost of every query for every box of its own image: (D, B, N, T), `inf` where the label is unusable.

    Class cost on the product of class and objectness probability, L1 of corners, GIoU, and a fixed cost for a point
    outside the box (paper, section 3.4).
    """
    index = targets.classes[None, :, None].expand(*predictions.logits.shape[:3], -1)
    class_probability = predictions.logits.gather(-1, index).sigmoid()
    probability = class_probability * predictions.objectness.sigmoid()[..., None]  # (D, B, N, T)
    alpha, gamma = config.focal_alpha, config.focal_gamma
    cost_class = alpha * (1 - probability) ** gamma * -(probability + 1e-8).log()
    cost_class = cost_class - (1 - alpha) * probability**gamma * -(1 - probability + 1e-8).log()

    corners = corners_from_boxes(predictions.boxes)[..., None, :]  # (D, B, N, 1, 4)
    target_corners = targets.corners[None, :, None]  # (1, B, 1, T, 4)
    cost_l1 = sum((corners[..., i] - target_corners[..., i]).abs() for i in range(4))
    _, giou = iou_and_giou(corners, target_corners)
    outside = points_outside(predictions.points[..., None, :], target_corners)
    cost = config.class_cost * cost_class + config.bbox_cost * cost_l1 - config.giou_cost * giou
    cost = cost + config.outside_cost * outside
    # A diverged model still gets a matching, and then a non-finite loss that the training loop can report.
    cost = cost.nan_to_num(nan=NON_FINITE_COST, posinf=NON_FINITE_COST, neginf=-NON_FINITE_COST)
    if predictions.mask is not None:
        cost = cost.masked_fill(~predictions.mask[None, :, :, None], UNUSED_COST)
    return cost.masked_fill(~targets.usable[None, :, None], float("inf"))


@torch.compiler.disable
@torch.no_grad()
def match_queries(
    predictions: LayerPredictions, targets: PaddedTargets, labels: list[dict[str, Any]], config: SapDetrConfig
) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Optimal assignment of queries to boxes, per layer and image.

    Returns:
        For each layer, for each image, the query indices in rising order and their boxes' indices (CPU, int64).

    Raises:
        ValueError: an image has more boxes than there are queries, a class label outside the model's classes, or a box
            that is not finite or has no extent; the message names the image.
    """
    num_queries = predictions.boxes.shape[2]
    for label, count in zip(labels, targets.counts, strict=True):
        if count > num_queries:
            _raise_too_many(label, f"the model has only {num_queries} queries", config)
    costs = matching_cost(predictions, targets, config).cpu().numpy()  # the one synchronization of a training step
    for label, count, cost in zip(labels, targets.counts, costs[0], strict=True):
        if count and (cost[:, :count] == float("inf")).any():
            _raise_unusable(label, predictions.logits.shape[-1])
    matches = []
    for layer_costs in costs:
        pairs = []
        for label, cost, count in zip(labels, layer_costs, targets.counts, strict=True):
            queries, boxes = linear_sum_assignment(cost[:, :count])
            if (cost[queries, boxes] == UNUSED_COST).any():
                _raise_too_many(label, "its feature maps have fewer places", config)
            pairs.append((torch.from_numpy(queries), torch.from_numpy(boxes)))
        matches.append(pairs)
    return matches


def _image_name(label: dict[str, Any]) -> str:
    image_id = label.get("image_id")
    return "An image" if image_id is None else f"Image {torch.as_tensor(image_id).flatten()[0].item()}"


def _raise_too_many(label: dict[str, Any], reason: str, config: SapDetrConfig) -> None:
    raise ValueError(
        f"{_image_name(label)} has {len(label['class_labels'])} boxes but {reason}: use "
        f"{config.way_to_more_queries}, or remove boxes from this image."
    )


def _raise_unusable(label: dict[str, torch.Tensor], num_labels: int) -> None:
    for class_label, box in zip(label["class_labels"].tolist(), label["boxes"].tolist(), strict=True):
        if not 0 <= class_label < num_labels:
            raise ValueError(
                f"{_image_name(label)} has the class label {class_label} but the model has the classes 0 to "
                f"{num_labels - 1}: map the data set's category ids to class indices, or set `num_labels`."
            )
        if not all(abs(value) < float("inf") for value in box) or min(box[2:]) <= 0:
            raise ValueError(
                f"{_image_name(label)} has the box {box} (center x, center y, width, height): boxes must be finite "
                "with a width and height above 0. Remove it from the data."
            )


def class_loss_of_negatives(logits: torch.Tensor, config: SapDetrConfig) -> torch.Tensor:
    """Elementwise class loss of the target 0; see [`class_loss`]."""
    probability = logits.sigmoid()
    if config.class_loss == "varifocal":
        probability = probability.detach()  # only a weight, see `class_loss`
    return (1 - config.focal_alpha) * probability**config.focal_gamma * nn.functional.softplus(logits)


def class_loss(
    logits: torch.Tensor, matched: torch.Tensor, classes: torch.Tensor, iou: torch.Tensor, config: SapDetrConfig
) -> torch.Tensor:
    """Class loss over all queries and classes, summed per layer, without a one-hot target.

    `focal` is the sigmoid focal loss. `varifocal` (VarifocalNet, arXiv 2008.13367; RT-DETR's form) teaches the class
    score of a matched query its IoU q: q BCE(logit, q), and (1 - alpha) p^gamma BCE(logit, 0) for all else, with q and
    p without gradient.

    Args:
        logits: (D, B, N, K).
        matched: (D, S, K) the logits of the matched queries.
        classes: (D, S) their classes.
        iou: (D, S) of their boxes and the true ones.
        config: `class_loss`, `focal_alpha` and `focal_gamma`.
    """
    everywhere = class_loss_of_negatives(logits, config).sum((1, 2, 3))
    at_target = matched.gather(-1, classes[..., None])[..., 0]  # (D, S)
    return everywhere + class_loss_at_target(at_target, iou, config).sum(-1)


def class_loss_at_target(logits: torch.Tensor, iou: torch.Tensor, config: SapDetrConfig) -> torch.Tensor:
    """Elementwise class loss of the true class, minus its loss as a negative, which [`class_loss`] adds everywhere."""
    if config.class_loss == "varifocal":
        quality = iou.detach()
        positive = quality * (nn.functional.softplus(logits) - logits * quality)
    else:
        probability, alpha, gamma = logits.sigmoid(), config.focal_alpha, config.focal_gamma
        positive = alpha * (1 - probability) ** gamma * nn.functional.softplus(-logits)
    return positive - class_loss_of_negatives(logits, config)


def objectness_focal_loss(logits: torch.Tensor, quality: torch.Tensor, config: SapDetrConfig) -> torch.Tensor:
    """Elementwise sigmoid focal loss with soft targets, (D, B, N) both; the targets carry gradient."""
    probability = logits.sigmoid()
    cross_entropy = nn.functional.softplus(logits) - logits * quality
    distance = 1 - (probability * quality + (1 - probability) * (1 - quality))
    alpha = config.focal_alpha * quality + (1 - config.focal_alpha) * (1 - quality)
    return alpha * distance**config.focal_gamma * cross_entropy


def normalizer(labels: list[dict[str, torch.Tensor]], device: torch.device) -> torch.Tensor:
    """Boxes in the batch of all processes / number of processes, at least 1, without a transfer from the device."""
    total = torch.full((), float(sum(len(label["class_labels"]) for label in labels)), device=device)
    if is_accelerate_available():
        from accelerate import PartialState
        from accelerate.utils import reduce

        if PartialState._shared_state:  # Accelerate is in use
            total = reduce(total, reduction="sum") / PartialState().num_processes
    return total.clamp(min=1)


def layer_losses(
    predictions: LayerPredictions,
    targets: PaddedTargets,
    matches: list[list[tuple[torch.Tensor, torch.Tensor]]],
    num_boxes: torch.Tensor | float,
    config: SapDetrConfig,
) -> dict[str, torch.Tensor]:
    """Unweighted losses of each layer, (D,) each, for given matches."""
    device = predictions.logits.device
    layers = torch.arange(len(matches), device=device)[:, None]
    image = torch.tensor([b for b, count in enumerate(targets.counts) for _ in range(count)], dtype=torch.long)
    query, box = (torch.stack([torch.cat([pair[i] for pair in layer]) for layer in matches]) for i in (0, 1))  # (D, S)
    image, query, box = (index.to(device, non_blocking=True) for index in (image.expand_as(query), query, box))

    classes = targets.classes[image, box]  # (D, S)
    target_corners = targets.corners[image, box]  # (D, S, 4)
    corners = corners_from_boxes(predictions.boxes[layers, image, query])
    points = predictions.points[layers, image, query]
    matched_logits = predictions.logits[layers, image, query]  # (D, S, K)
    iou, of_boxes = box_losses(corners, target_corners)
    quality = torch.zeros_like(predictions.objectness).index_put((layers.expand_as(image), image, query), iou)
    of_matches = {**of_boxes, **inner_losses(points, target_corners, config)}
    return {
        "loss_ce": class_loss(predictions.logits, matched_logits, classes, iou, config) / num_boxes,
        "loss_ce_obj": objectness_focal_loss(predictions.objectness, quality, config).sum((1, 2)) / num_boxes,
        **{name: values.sum(1) / num_boxes for name, values in of_matches.items()},
        "class_error": class_error(matched_logits, classes),
    }


def box_losses(corners: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """IoU (...) of boxes x1, y1, x2, y2 (..., 4) with their targets, and the elementwise losses (...) by name."""
    iou, giou = iou_and_giou(corners, targets)
    return iou, {"loss_bbox": (corners - targets).abs().sum(-1), "loss_giou": 1 - giou}


def inner_losses(points: torch.Tensor, corners: torch.Tensor, config: SapDetrConfig) -> dict[str, torch.Tensor]:
    """Elementwise losses (...) by name of points x, y (..., 2) that should lie in boxes x1, y1, x2, y2 (..., 4).

    `step` is 1 outside. `distance` is z / (1 + z) with z the distance from the box in box sizes, added over both axes:
    it has a gradient, and is bounded because the border of its cell can keep a point from ever reaching its box. It
    comes with the step's value, `loss_inner_share`, so that both can be compared.
    """
    outside = points_outside(points, corners)
    if config.inner_loss == "step":
        return {"loss_inner": outside}
    low, high = corners.split(2, dim=-1)
    distance = ((low - points).relu() + (points - high).relu()) / (high - low).clamp(min=1e-3)
    distance = distance.sum(-1)
    return {"loss_inner": distance / (1 + distance), "loss_inner_share": outside}


def class_error(matched_logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Percent of matched queries whose best class is wrong, (D, S, K) and (D, S) -> (D,); 100 if none is matched."""
    right = (matched_logits.argmax(-1) == classes).sum(1)
    return 100 - 100 * right / max(classes.shape[1], 1)


def sap_detr_loss(
    logits: torch.Tensor,
    labels: list[dict[str, torch.Tensor]],
    pred_boxes: torch.Tensor,
    pred_points: torch.Tensor,
    pred_objectness: torch.Tensor,
    config: SapDetrConfig,
    num_boxes: torch.Tensor | float | None = None,
    num_groups: int = 1,
    query_mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss of SAP-DETR over one or more decoder layers (paper, section 3.4; released `SetCriterion`).

    Args:
        logits: (layers, batch, queries, classes), the last layer last; the others likewise.
        labels: one dict per image with `class_labels` (n,) and `boxes` (n, 4) center x, center y, width, height in
            [0, 1] of the valid image; error messages name its `image_id`, if it has one. Images may have no boxes.
        pred_boxes: (layers, batch, queries, 4) as center x, center y, width, height.
        pred_points: (layers, batch, queries, 2).
        pred_objectness: (layers, batch, queries, 1) logits.
        config: coefficients.
        num_boxes: divisor of all sums. By default the boxes in the batch of all processes / number of processes, at
            least 1; gradient accumulation passes that of its whole step.
        num_groups: consecutive groups of equally many queries. Each is matched by itself, and all values are means over
            the groups; `class_error` is the first group's.
        query_mask: (batch, queries) bool, False for queries that must not be matched.

    Returns:
        The weighted sum over all layers, and the unweighted, detached values: `loss_ce`, `loss_bbox`, `loss_giou`,
        `loss_ce_obj`, `loss_inner` and `class_error` (percent of matched queries) of the last layer, and the losses of
        layer i as `loss_..._{i}`; see [`inner_losses`] for `loss_inner_share`.

    Raises:
        ValueError: not one dict of labels for each image; or see [`match_queries`].
    """
    device = logits.device
    check_labels(labels, logits.shape[1])
    layers = logits.shape[0]
    predictions = layer_predictions(logits, pred_boxes, pred_points, pred_objectness, num_groups=num_groups)
    predictions.mask = query_mask
    with torch.autocast(device.type, enabled=False):
        targets = pad_targets(labels, logits.shape[-1], device)
        matches = match_queries(predictions, targets, labels, config)
        divisor = normalizer(labels, device) if num_boxes is None else num_boxes
        losses = layer_losses(predictions, targets, matches, divisor, config)
    if num_groups > 1:
        by_group = {name: values.view(layers, num_groups) for name, values in losses.items()}
        losses = {name: values.mean(1) for name, values in by_group.items()}
        losses["class_error"] = by_group["class_error"][:, 0]
    return weighted_sum(losses, config), named_by_layer(losses)


def layer_predictions(
    logits: torch.Tensor,
    pred_boxes: torch.Tensor,
    pred_points: torch.Tensor,
    pred_objectness: torch.Tensor,
    *,
    num_groups: int = 1,
) -> LayerPredictions:
    """A model's outputs in float32; groups of queries become further layers, (D * G, B, N, ·)."""
    tensors = (logits, pred_boxes, pred_points, pred_objectness.squeeze(-1))
    return LayerPredictions(
        *(each.float().unflatten(2, (num_groups, -1)).transpose(1, 2).flatten(0, 1) for each in tensors)
    )


def check_labels(labels: list[dict[str, torch.Tensor]], images: int) -> None:
    """Raise a ValueError unless there is one dict of labels for each image."""
    if len(labels) != images:
        raise ValueError(f"`labels` has {len(labels)} entries for {images} images: one dict for each.")


def weighted_sum(losses: dict[str, torch.Tensor], config: SapDetrConfig) -> torch.Tensor:
    """Multiply the losses (D,) by their coefficients and add them over losses and layers.

    Raises:
        ValueError: a loss has no coefficient, so that nothing would learn from it.
    """
    weights = {
        "loss_ce": config.class_loss_coefficient,
        "loss_bbox": config.bbox_loss_coefficient,
        "loss_giou": config.giou_loss_coefficient,
        "loss_ce_obj": config.objectness_loss_coefficient,
        "loss_inner": config.inner_loss_coefficient,
    }
    if forgotten := losses.keys() - weights.keys() - REPORTED_ONLY:
        raise ValueError(f"{', '.join(sorted(forgotten))}: a loss without a coefficient in `weighted_sum`.")
    return torch.stack([weight * losses[name].sum() for name, weight in weights.items()]).sum()


def named_by_layer(losses: dict[str, torch.Tensor], suffix: str = "") -> dict[str, torch.Tensor]:
    """The detached losses (D,) by name: those of the last layer without, all others with the layer's number."""
    return {
        f"{name}{suffix}" if layer == len(values) - 1 else f"{name}{suffix}_{layer}": value
        for name, values in losses.items()
        for layer, value in enumerate(values.detach().unbind())
        if layer == len(values) - 1 or name != "class_error"
    }
