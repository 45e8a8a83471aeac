"""SAP-DETR (Salient Point-based DETR, CVPR 2023) for Hugging Face Transformers.

Importing this package registers the model with `AutoConfig`, `AutoModel`, `AutoModelForObjectDetection` and
`AutoImageProcessor`; `pipeline("object-detection", model=DIRECTORY)` then works on a saved model.
"""

from transformers import AutoConfig, AutoModel, AutoModelForObjectDetection
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES, MODEL_MAPPING_NAMES
from transformers.utils import is_torchvision_available

from .model.configuration_sap_detr import SapDetrConfig
from .model.image_processing_pil_sap_detr import SapDetrImageProcessorPil
from .model.modeling_sap_detr import SapDetrForObjectDetection, SapDetrModel, SapDetrPreTrainedModel

__all__ = [
    "SapDetrConfig",
    "SapDetrForObjectDetection",
    "SapDetrImageProcessorPil",
    "SapDetrModel",
    "SapDetrPreTrainedModel",
]

_image_processors: dict[str, type] = {"pil": SapDetrImageProcessorPil}
if is_torchvision_available():
    from .model.image_processing_sap_detr import SapDetrImageProcessor

    _image_processors["torchvision"] = SapDetrImageProcessor
    __all__ += ["SapDetrImageProcessor"]

AutoConfig.register("sap_detr", SapDetrConfig, exist_ok=True)
AutoModel.register(SapDetrConfig, SapDetrModel, exist_ok=True)
AutoModelForObjectDetection.register(SapDetrConfig, SapDetrForObjectDetection, exist_ok=True)
AutoImageProcessor.register(SapDetrConfig, image_processor_classes=_image_processors, exist_ok=True)
# The pipeline knows model classes by these names and logs an error for others.
MODEL_MAPPING_NAMES.setdefault("sap_detr", "SapDetrModel")
MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES.setdefault("sap_detr", "SapDetrForObjectDetection")
