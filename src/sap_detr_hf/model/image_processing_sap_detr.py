"""SAP-DETR's image processor on torchvision; importable only where torchvision is installed."""

from typing import Any

import torch
from transformers.models.deformable_detr.image_processing_deformable_detr import DeformableDetrImageProcessor

from .detection_processing import SapDetrDetectionProcessing, SapDetrImageProcessorKwargs


class SapDetrImageProcessor(SapDetrDetectionProcessing, DeformableDetrImageProcessor):  # type: ignore[misc]
    """Turns images and COCO annotations into SAP-DETR's input, and its output into detections, with torchvision.

    Resizes to shortest 800 / longest 1333 pixels by the released rule, normalizes by ImageNet's mean and deviation, and
    pads to the batch's largest height and width. See [`SapDetrDetectionProcessing.preprocess`] and
    [`SapDetrDetectionProcessing.post_process_object_detection`].
    """

    valid_kwargs = SapDetrImageProcessorKwargs

    def pad(self, image: torch.Tensor, padded_size: tuple[int, int], annotation: Any = None, *args, **kwargs):  # type: ignore[override]
        """As in Deformable DETR's processor, without writing a mask for an image (..., height, width) that fits."""
        if image.shape[-2:] != tuple(padded_size):
            return super().pad(image, padded_size, annotation, *args, **kwargs)
        mask = torch.ones((), dtype=torch.int64, device=image.device).expand(*image.shape[:-3], *padded_size)
        return image, mask, annotation


__all__ = ["SapDetrImageProcessor"]
