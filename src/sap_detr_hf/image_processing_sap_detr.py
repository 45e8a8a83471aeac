"""SAP-DETR's image processor on torchvision; importable only where torchvision is installed."""

from transformers.models.deformable_detr.image_processing_deformable_detr import DeformableDetrImageProcessor

from .detection_processing_sap_detr import SapDetrDetectionProcessing, SapDetrImageProcessorKwargs


class SapDetrImageProcessor(SapDetrDetectionProcessing, DeformableDetrImageProcessor):  # type: ignore[misc]
    """Turns images and COCO annotations into SAP-DETR's input, and its output into detections, with torchvision.

    Resizes to shortest 800 / longest 1333 pixels by the released rule, normalises by ImageNet's mean and deviation, and
    pads to the batch's largest height and width. See [`SapDetrDetectionProcessing.preprocess`] and
    [`SapDetrDetectionProcessing.post_process_object_detection`].
    """

    valid_kwargs = SapDetrImageProcessorKwargs


__all__ = ["SapDetrImageProcessor"]
