"""Image processors of both backends and small inputs for them."""

import numpy as np
import pytest
from PIL import Image
from transformers.utils import is_torchvision_available

from sap_detr_hf.model.image_processing_pil_sap_detr import SapDetrImageProcessorPil

if is_torchvision_available():
    from sap_detr_hf.model.image_processing_sap_detr import SapDetrImageProcessor
else:
    SapDetrImageProcessor = None

BACKENDS = [
    pytest.param(SapDetrImageProcessorPil, id="pil"),
    pytest.param(
        SapDetrImageProcessor,
        id="torchvision",
        marks=pytest.mark.skipif(SapDetrImageProcessor is None, reason="torchvision is not installed"),
    ),
]
both_backends = pytest.mark.parametrize("processor_class", BACKENDS)
needs_torchvision = pytest.mark.skipif(SapDetrImageProcessor is None, reason="torchvision is not installed")
SMALL = {"shortest_edge": 48, "longest_edge": 80}


def photograph(width: int, height: int) -> Image.Image:
    """A smooth picture with an edge, different in each channel."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9.0) + np.cos(y / 7.0), np.sin((x + y) / 11.0) * 2, np.where(x > width / 2, 1.5, -1.5)]
    return Image.fromarray((np.stack(waves, axis=-1) * 60 + 128).astype(np.uint8))


def target(image_id: int, *bboxes, category_id: int = 1, **more) -> dict:
    """COCO annotations of one image; `more` goes into each of them."""
    annotations = [{"bbox": bbox, "category_id": category_id, "area": 10.0, "iscrowd": 0, **more} for bbox in bboxes]
    return {"image_id": image_id, "annotations": annotations}
