"""SAP-DETR's image processor on PIL and NumPy, without torchvision."""

import numpy as np
from transformers.models.deformable_detr.image_processing_pil_deformable_detr import DeformableDetrImageProcessorPil

from .detection_processing import SapDetrDetectionProcessing, SapDetrImageProcessorKwargs


class SapDetrImageProcessorPil(SapDetrDetectionProcessing, DeformableDetrImageProcessorPil):
    """The same as `SapDetrImageProcessor` for machines without torchvision: resizes with PIL, as the released code did.

    Resizes to shortest 800 / longest 1333 pixels by the released rule, normalizes by ImageNet's mean and deviation, and
    pads to the batch's largest height and width. Both save as `SapDetrImageProcessor`.
    """

    valid_kwargs = SapDetrImageProcessorKwargs

    def normalize(self, image: np.ndarray, *args, **kwargs) -> np.ndarray:
        """As in Deformable DETR's processor, with the channels apart in memory: NumPy is ten times as fast there.

        PIL's pixels lie channel beside channel; seen as (channels, height, width) they are a strided view.
        """
        return super().normalize(np.ascontiguousarray(image), *args, **kwargs)


__all__ = ["SapDetrImageProcessorPil"]
