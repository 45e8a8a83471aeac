"""What an exported file says beside the graph, as JSON texts by key: labels and how to prepare images."""

import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from transformers.utils import is_torchvision_available

from ..model.image_processing_pil_sap_detr import SapDetrImageProcessorPil


def detector_metadata(config: Any, image_processor: Any) -> dict[str, str]:
    """What a user of the file must know.

    Keys: `model_type`; `id2label`, names by class index; `category_ids`, the data set's own id of each class index or
    null where the index is that id; `image_processor`, as in preprocessor_config.json.
    """
    contents = {
        "model_type": config.model_type,
        "id2label": {str(index): name for index, name in config.id2label.items()},
        "category_ids": config.category_ids,
        "image_processor": json.loads(image_processor.to_json_string()),
    }
    return {key: json.dumps(content) for key, content in contents.items()}


def config_and_image_processor(metadata: Mapping[str, str]) -> tuple[SimpleNamespace, Any]:
    """What [`detector_metadata`] wrote: `model_type`, `id2label` and `category_ids`; the image processor.

    Raises:
        KeyError, TypeError, ValueError: the texts are not as it writes them.
    """
    contents = {key: json.loads(metadata[key]) for key in ("model_type", "id2label", "category_ids", "image_processor")}
    values = contents.pop("image_processor")
    contents["id2label"] = {int(index): name for index, name in contents["id2label"].items()}
    if is_torchvision_available():  # as `AutoImageProcessor` chooses
        from ..model.image_processing_sap_detr import SapDetrImageProcessor

        return SimpleNamespace(**contents), SapDetrImageProcessor.from_dict(values)
    return SimpleNamespace(**contents), SapDetrImageProcessorPil.from_dict(values)
