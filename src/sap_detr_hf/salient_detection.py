"""Detections of single images with what only SAP-DETR has: each detection's salient point."""

from dataclasses import dataclass

import torch
from PIL import Image
from transformers import PreTrainedModel


@dataclass
class SalientDetections:
    """Detections of one image, best first.

    Args:
        scores: (n,) in [0, 1].
        labels: names, from `config.id2label`.
        boxes: (n, 4) x1, y1, x2, y2 in pixels.
        points: (n, 2) x, y in pixels: the salient point the box was predicted from.
    """

    scores: torch.Tensor
    labels: list[str]
    boxes: torch.Tensor
    points: torch.Tensor


@torch.no_grad()
def detect_with_points(
    model: PreTrainedModel, image_processor, image: Image.Image, threshold: float = 0.5, top_k: int = 300
) -> SalientDetections:
    """Detect objects in an upright RGB image; the same scores, labels and boxes as the pipeline's."""
    inputs = image_processor(images=[image], return_tensors="pt").to(model.device)
    outputs = model.eval()(**inputs)
    scores, index = outputs.logits[0].float().sigmoid().flatten().sort(descending=True)  # (queries * classes,)
    keep = index[:top_k][scores[:top_k] > threshold]
    query, label = keep // outputs.logits.shape[-1], keep % outputs.logits.shape[-1]
    centre, size = outputs.pred_boxes[0, query].split(2, dim=-1)
    scale = torch.tensor(image.size, device=centre.device)  # width, height
    corners = torch.cat([(centre - size / 2) * scale, (centre + size / 2) * scale], dim=-1)
    return SalientDetections(
        scores=scores[: len(keep)].cpu(),
        labels=[str((model.config.id2label or {})[i]) for i in label.tolist()],
        boxes=corners.cpu(),
        points=(outputs.pred_points[0, query] * scale).cpu(),
    )
