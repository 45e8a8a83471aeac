"""Variants of all model types by name."""

from ..model.configuration_sap_detr import SapDetrConfig
from ..model.configuration_sap_dino_detr import SapDinoDetrConfig
from ..model.detector_configuration import DetectorConfig

CONFIGURATIONS = (SapDetrConfig, SapDinoDetrConfig)
VARIANTS = tuple(name for configuration in CONFIGURATIONS for name in configuration.variants)


def config_of_variant(name: str, **overrides) -> DetectorConfig:
    """The configuration of one of `VARIANTS`; `AutoModelForObjectDetection.from_config` makes its model.

    Raises:
        ValueError: no such variant, or fields that do not fit together.
    """
    for configuration in CONFIGURATIONS:
        if name in configuration.variants:
            return configuration.from_variant(name, **overrides)
    raise ValueError(f"Unknown SAP-DETR variant {name!r}: choose one of {', '.join(VARIANTS)}.")
