"""SAP-DETR (Salient Point-based DETR, CVPR 2023) for Hugging Face Transformers.

Importing this package registers the model with `AutoConfig`, `AutoModel`, `AutoModelForObjectDetection` and
`AutoImageProcessor`; `pipeline("object-detection", model=DIRECTORY)` then works on a saved model.
"""

from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForObjectDetection
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES, MODEL_MAPPING_NAMES
from transformers.utils import is_torchvision_available

from .model.configuration_sap_detr import SapDetrConfig
from .model.configuration_sap_dino_detr import SapDinoDetrConfig
from .model.image_processing_pil_sap_detr import SapDetrImageProcessorPil
from .model.modeling_sap_detr import SapDetrForObjectDetection, SapDetrModel, SapDetrPreTrainedModel
from .model.modeling_sap_dino_detr import SapDinoDetrForObjectDetection, SapDinoDetrModel, SapDinoDetrPreTrainedModel

__all__ = [
    "SapDetrConfig",
    "SapDetrForObjectDetection",
    "SapDetrImageProcessorPil",
    "SapDetrModel",
    "SapDetrPreTrainedModel",
    "SapDinoDetrConfig",
    "SapDinoDetrForObjectDetection",
    "SapDinoDetrModel",
    "SapDinoDetrPreTrainedModel",
]

_image_processors: dict[str, type] = {"pil": SapDetrImageProcessorPil}
if is_torchvision_available():
    from .model.image_processing_sap_detr import SapDetrImageProcessor

    _image_processors["torchvision"] = SapDetrImageProcessor
    __all__ += ["SapDetrImageProcessor"]

_model_types: list[tuple[Any, Any, Any]] = [
    (SapDetrConfig, SapDetrModel, SapDetrForObjectDetection),
    (SapDinoDetrConfig, SapDinoDetrModel, SapDinoDetrForObjectDetection),
]
for _config, _model, _detector in _model_types:
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
    AutoModelForObjectDetection.register(_config, _detector, exist_ok=True)
    AutoImageProcessor.register(_config, image_processor_classes=_image_processors, exist_ok=True)
    # The pipeline knows model classes by these names and logs an error for others.
    MODEL_MAPPING_NAMES.setdefault(_config.model_type, _model.__name__)
    MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES.setdefault(_config.model_type, _detector.__name__)
