"""Detections with what only SAP-DETR has: each detection's salient point."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
        classes: (n,) int64, class indices.
        queries: (n,) int64, the query each detection came from; one query may give several classes.
    """

    scores: torch.Tensor
    labels: list[str]
    boxes: torch.Tensor
    points: torch.Tensor
    classes: torch.Tensor
    queries: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, index: torch.Tensor) -> "SalientDetections":
        """The detections at the positions `index` (m,) int64, in that order."""
        return SalientDetections(
            scores=self.scores[index],
            labels=[self.labels[i] for i in index.tolist()],
            boxes=self.boxes[index],
            points=self.points[index],
            classes=self.classes[index],
            queries=self.queries[index],
        )


@torch.no_grad()
def detect_with_points(
    model: PreTrainedModel, image_processor, image: Image.Image, threshold: float = 0.5, top_k: int = 300
) -> SalientDetections:
    """Detect objects in an upright RGB image; the same scores, labels and boxes as the pipeline's."""
    inputs = image_processor(images=[image], return_tensors="pt").to(model.device, model.dtype)
    outputs = model.eval()(**inputs)
    return salient_detections(outputs, [image.size], model.config.id2label, threshold, top_k)[0]


def salient_detections(
    outputs: Any,
    sizes: Sequence[tuple[int, int]],
    id2label: Mapping[Any, str] | None,
    threshold: float = 0.5,
    top_k: int = 300,
) -> list[SalientDetections]:
    """Each image's best detections: the `top_k` best of sigmoid(class logit) over queries x classes, on the CPU.

    Args:
        outputs: of the model, with `logits` (B, N, K), `pred_boxes` (B, N, 4) and `pred_points` (B, N, 2).
        sizes: width and height of each upright image.
        id2label: names of the class indices.
        threshold: only detections of a higher score are returned.
        top_k: detections of an image at most.
    """
    predictions = (outputs.logits, outputs.pred_boxes, outputs.pred_points)
    logits, boxes, points = (values.detach().float().cpu() for values in predictions)
    classes = logits.shape[-1]
    found = []
    for image, size in enumerate(sizes):
        scores, index = logits[image].sigmoid().flatten().sort(descending=True)  # (N * K,)
        keep = index[:top_k][scores[:top_k] > threshold]
        query, label = keep // classes, keep % classes
        scale = torch.tensor(size)  # width, height
        centre, extent = boxes[image, query].split(2, dim=-1)
        found.append(
            SalientDetections(
                scores=scores[: len(keep)],
                labels=[label_name(id2label, index) for index in label.tolist()],
                boxes=torch.cat([(centre - extent / 2) * scale, (centre + extent / 2) * scale], dim=-1),
                points=points[image, query] * scale,
                classes=label,
                queries=query,
            )
        )
    return found


def label_name(id2label: Mapping[Any, str] | None, index: int) -> str:
    """Name of a class index; transformers' own where the model has none."""
    return str((id2label or {}).get(index, f"LABEL_{index}"))
