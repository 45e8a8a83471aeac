"""A SAP-DINO-DETR small enough to run in milliseconds; inputs and labels are those of `tiny_model`."""

import torch
from tiny_model import TINY_BACKBONE

from sap_detr_hf import SapDinoDetrConfig, SapDinoDetrForObjectDetection

TINY_PYRAMID = {**TINY_BACKBONE, "out_features": ["stage2", "stage3", "stage4"]}


def tiny_dino_config(**overrides) -> SapDinoDetrConfig:
    fields = {
        "backbone_config": TINY_PYRAMID,
        "d_model": 64,
        "encoder_layers": 2,
        "decoder_layers": 3,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "num_queries": 20,
        "num_labels": 6,
    }
    return SapDinoDetrConfig(**{**fields, **overrides})


def tiny_dino(seed: int = 0, noise: float = 0.1, **overrides) -> SapDinoDetrForObjectDetection:
    """Random weights also in the layers that start at zero, so that nothing is hidden."""
    torch.manual_seed(seed)
    model = SapDinoDetrForObjectDetection(tiny_dino_config(**overrides))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "norm" not in name and "backbone" not in name:
                parameter += noise * torch.randn_like(parameter)
    return model.eval()
