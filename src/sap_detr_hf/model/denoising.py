# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Denoising queries for salient points: true boxes with noise on their sides, which the model removes in training.

The idea is DN-DETR's (arXiv 2203.01305), with DINO's negatives (arXiv 2203.03605); the released SAP-DETR has none. An
object becomes a query: a point anywhere in its box, sides to its noisy corners, and its class, sometimes a wrong one,
as content. Half of the queries are negatives: the model must classify them as background. The number of queries is
fixed: one compiled graph serves all batches. Letters in shape comments: B images, P pairs of a positive and a negative
query, S = 2 P queries (the positives first), T boxes of the fullest image, K classes, D decoder layers.
"""

from dataclasses import dataclass

import torch
from torch import nn

from .attention import additive_mask
from .configuration_sap_detr import SapDetrConfig
from .loss import (
    REPORTED_ONLY,
    LayerPredictions,
    box_losses,
    class_loss_at_target,
    class_loss_of_negatives,
    corners_from_boxes,
    inner_losses,
    layer_predictions,
    named_by_layer,
    objectness_focal_loss,
    pad_targets,
    points_outside,
    weighted_sum,
)

# How many uniform random numbers each kind of noise takes, in this order
NOISE_WIDTHS = {"flip": 1, "label": 1, "point": 2, "sign": 4, "magnitude": 4, "kind": 1, "axis": 1, "side": 1,
                "distance": 1, "first_box": 1}  # fmt: skip
SMALLEST_SIDE = 1e-3


@dataclass
class DenoisingQueries:
    """The denoising queries of a batch and what they are to become.

    Args:
        content: (B, S, d) of their classes, some of which are wrong.
        points: (B, S, 2) x, y in [0, 1].
        sides: (B, S, 4) left, top, right, bottom in [0, 1].
        visible: (B, 1, S, S) bool, which queries see each other.
        weights: (B, S) of the losses; the positives' add up to each image's number of boxes.
        target_classes: (B, P) the true classes of the positives.
        target_corners: (B, P, 4) their boxes x1, y1, x2, y2.
        level_noise: (B, S) uniform numbers, by which a model with a feature pyramid chooses each query's level.
    """

    content: torch.Tensor
    points: torch.Tensor
    sides: torch.Tensor
    visible: torch.Tensor
    weights: torch.Tensor
    target_classes: torch.Tensor
    target_corners: torch.Tensor
    level_noise: torch.Tensor | None = None

    def attention_mask(self, dtype: torch.dtype) -> torch.Tensor:
        """(B, 1, S, S), to be added to the attention's logits."""
        return additive_mask(self.visible, dtype)


def draw_noise(images: int, pairs: int, device: torch.device, levels: bool = False) -> torch.Tensor:
    """Uniform numbers in [0, 1) for [`denoising_queries`], from the device's default generator.

    Args:
        levels: whether to draw `level_noise` as well, for a model with a feature pyramid.

    Returns:
        (B, 2, P, 17 or, with levels, 18) float32: a part of it is the noise of a part of the batch.
    """
    widths = (sum(NOISE_WIDTHS.values()), *([1] if levels else []))
    return torch.cat([torch.rand(images, 2, pairs, width, device=device, dtype=torch.float32) for width in widths], -1)


def denoising_queries(
    labels: list[dict[str, torch.Tensor]],
    class_embedding: nn.Embedding,
    config: SapDetrConfig,
    noise: torch.Tensor | None = None,
) -> DenoisingQueries:
    """Make the denoising queries of a batch, on its device and without a synchronization.

    Args:
        labels: see `sap_detr_loss`.
        class_embedding: the content of a query of each class.
        config: number of pairs, and the noise's strengths.
        noise: see [`draw_noise`], which is called without it.

    Raises:
        ValueError: noise of another width, or for another number of images.
    """
    pyramid = config.uses_pyramid
    if noise is None:
        noise = draw_noise(len(labels), config.denoising_pairs, class_embedding.weight.device, levels=pyramid)
    widths = tuple(NOISE_WIDTHS.values())
    if noise.shape[-1] != sum(widths) + pyramid:
        raise ValueError(f"The noise needs {sum(widths) + pyramid} numbers for each query, not {noise.shape[-1]}.")
    if noise.shape[:2] != (len(labels), 2):
        raise ValueError(f"The noise is for {tuple(noise.shape[:2])} images and halves, not for {(len(labels), 2)}.")
    pairs, num_labels = noise.shape[2], class_embedding.num_embeddings
    targets = pad_targets(labels, num_labels, noise.device)
    parts = dict(zip(NOISE_WIDTHS, noise[..., : sum(widths)].split(widths, dim=-1), strict=True))  # (B, 2, P, ·)
    counts = torch.tensor(targets.counts).to(noise.device, non_blocking=True)[:, None]  # (B, 1)
    boxes = nn.functional.pad(targets.corners, (0, 0, 0, 1), value=0.5)  # (B, T + 1, 4): never empty
    classes = nn.functional.pad(targets.classes, (0, 1))

    box, repetition, used = fill_slots(counts, pairs, parts["first_box"][:, 0, :1, 0])
    weight = used * counts / used.sum(1, keepdim=True).clamp(min=1)
    target_classes = classes.gather(1, box)
    target_corners = boxes.gather(1, box[..., None].expand(-1, -1, 4))
    negative = torch.arange(2, device=noise.device)[:, None, None] == 1  # (2, 1, 1)
    is_outside = negative & (parts["kind"] < config.denoising_outside_share)  # (B, 2, P, 1)
    points = noisy_points(target_corners, is_outside, parts, config.denoising_point_noise)
    sides = noisy_sides(target_corners, points, negative, is_outside, parts, config.denoising_box_noise)
    inside_any = ~points_outside(points[..., None, :], boxes[:, None, None])  # (B, 2, P, T + 1)
    inside_any = (inside_any & (torch.arange(boxes.shape[1], device=noise.device) < counts)[:, None, None]).any(-1)
    misleading = inside_any | ((points < 0) | (points > 1)).any(-1)  # no false alarm there, or no place of the image

    wrong = (parts["label"][..., 0] * num_labels).long().clamp(max=num_labels - 1)
    noisy_classes = torch.where(parts["flip"][..., 0] < config.denoising_label_noise, wrong, target_classes[:, None])
    repetition, used = repetition.repeat(1, 2), used.repeat(1, 2)  # (B, S)
    together = (repetition[:, :, None] == repetition[:, None]) & used[:, :, None] & used[:, None]
    itself = torch.eye(2 * pairs, dtype=torch.bool, device=noise.device)
    return DenoisingQueries(
        content=class_embedding(noisy_classes.flatten(1, 2)),
        points=points.flatten(1, 2),
        sides=sides.flatten(1, 2),
        visible=(together | itself)[:, None],
        weights=(weight[:, None] * ~(is_outside[..., 0] & misleading)).flatten(1, 2),
        target_classes=target_classes,
        target_corners=target_corners,
        level_noise=noise[..., -1].flatten(1) if pyramid else None,
    )


def fill_slots(
    counts: torch.Tensor, pairs: int, first_box: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Go slot by slot through an image's boxes, as often as all of them fit; with more boxes than slots, take some.

    Args:
        counts: (B, 1) boxes of each image.
        pairs: slots.
        first_box: (B, 1) in [0, 1), which box comes first, as a share of them.

    Returns:
        (B, P) each: the box of a slot, how often all boxes came before, and whether the slot is used.
    """
    slot, some = torch.arange(pairs, device=counts.device), counts.clamp(min=1)
    first = (first_box * counts).long() % some  # (B, 1)
    box, repetition = (slot + first) % some, slot // some
    return box, repetition, (counts > 0) & (repetition < (pairs // some).clamp(min=1))


def noisy_points(
    target_corners: torch.Tensor, is_outside: torch.Tensor, parts: dict[str, torch.Tensor], point_noise: float
) -> torch.Tensor:
    """(B, 2, P, 2): anywhere in the box (B, P, 4), or, where `is_outside`, behind one of its sides."""
    low, high = target_corners[:, None].split(2, dim=-1)  # (B, 1, P, 2)
    step = (2 * parts["point"] - 1) * point_noise
    behind = torch.where(parts["side"] < 0.5, -1, 1) * (1 + parts["distance"])
    along = torch.cat([parts["axis"] < 0.5, parts["axis"] >= 0.5], dim=-1)  # (B, 2, P, 2)
    return (low + high) / 2 + torch.where(is_outside & along, behind, step) * (high - low) / 2


def noisy_sides(
    target_corners: torch.Tensor,
    points: torch.Tensor,
    negative: torch.Tensor,
    is_outside: torch.Tensor,
    parts: dict[str, torch.Tensor],
    box_noise: float,
) -> torch.Tensor:
    """(B, 2, P, 4): to the corners, which move by up to half of the box, or by more for negatives that are inside."""
    low, high = target_corners[:, None].split(2, dim=-1)  # (B, 1, P, 2)
    size = torch.cat([high - low, high - low], dim=-1)
    magnitude = parts["magnitude"] + (negative & ~is_outside)
    moved = torch.where(parts["sign"] < 0.5, -1, 1) * magnitude * box_noise
    corners = (target_corners[:, None] + moved * size / 2).clamp(0, 1)
    sides = torch.cat([points - corners[..., :2], corners[..., 2:] - points], dim=-1)
    sides = torch.where(negative, sides.abs(), sides)
    return sides.maximum(size * 0.02 + SMALLEST_SIDE).clamp(max=1 - SMALLEST_SIDE)


def denoising_loss(
    predictions: dict[str, torch.Tensor],
    queries: DenoisingQueries,
    num_boxes: torch.Tensor | float,
    config: SapDetrConfig,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss of the denoising queries, with the coefficients of all others and a further one for all of it.

    Args:
        predictions: of the denoising queries, (D, B, S, ·), named as in the model's output.

    Returns:
        The weighted sum over all layers, and the unweighted, detached values as `loss_..._dn`, see `sap_detr_loss`.
    """
    with torch.autocast(queries.weights.device.type, enabled=False):
        outputs = (predictions[name] for name in ("logits", "pred_boxes", "pred_points", "pred_objectness"))
        losses = denoising_losses(layer_predictions(*outputs), queries, num_boxes, config)
    loss = config.denoising_loss_coefficient * weighted_sum(losses, config)
    return loss, named_by_layer(losses, "_dn")


def denoising_losses(
    predictions: LayerPredictions, queries: DenoisingQueries, num_boxes: torch.Tensor | float, config: SapDetrConfig
) -> dict[str, torch.Tensor]:
    """Unweighted losses of each layer, (D,) each, named and computed as those of matched queries."""
    pairs = queries.target_classes.shape[1]
    positive = queries.weights[:, :pairs]

    def total(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return (values * weights).sum((1, 2)) / num_boxes

    corners = corners_from_boxes(predictions.boxes[:, :, :pairs])
    iou, of_boxes = box_losses(corners, queries.target_corners)
    quality = torch.cat([iou, torch.zeros_like(iou)], dim=2)
    index = queries.target_classes[None, ..., None].expand(len(iou), -1, -1, -1)
    at_target = predictions.logits[:, :, :pairs].gather(-1, index)[..., 0]  # (D, B, P)
    negatives = class_loss_of_negatives(predictions.logits, config).sum(-1)
    of_positives = {**of_boxes, **inner_losses(predictions.points[:, :, :pairs], queries.target_corners, config)}
    return {
        "loss_ce": total(negatives, queries.weights) + total(class_loss_at_target(at_target, iou, config), positive),
        "loss_ce_obj": total(objectness_focal_loss(predictions.objectness, quality, config), queries.weights),
        **{name: total(values, positive) for name, values in of_positives.items() if name not in REPORTED_ONLY},
    }
