"""Detectors of transformers with random weights, saved to a directory, to start from."""

import torch
from tiny_model import TINY_BACKBONE
from transformers import (
    AutoModelForObjectDetection,
    ConditionalDetrConfig,
    DabDetrConfig,
    DeformableDetrConfig,
    DetrConfig,
    ResNetConfig,
)

DETR_KINDS = ("dab-detr", "detr", "conditional_detr")
CONFIGS = {"dab-detr": DabDetrConfig, "detr": DetrConfig, "conditional_detr": ConditionalDetrConfig,
           "deformable_detr": DeformableDetrConfig}  # fmt: skip
WIDTH = 64
SMALL = {
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 8,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 56,
    "num_queries": 12,
    "id2label": {0: "N/A", 1: "person", 2: "car"},
}
TINY = {key: value for key, value in TINY_BACKBONE.items() if key != "model_type"}


def save_source(directory, kind: str, seed: int = 0, **fields):
    """A detector of transformers with random weights everywhere, norms' statistics included."""
    if "backbone_config" not in fields and "backbone" not in fields:
        maps = {"out_features": ["stage2", "stage3", "stage4"]} if kind == "deformable_detr" else {}
        fields["backbone_config"] = ResNetConfig(**{**TINY, **maps})
    width = {"hidden_size" if kind == "dab-detr" else "d_model": WIDTH}
    torch.manual_seed(seed)
    model = AutoModelForObjectDetection.from_config(CONFIGS[kind](**{**SMALL, **width, **fields}))
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor += 0.1 * (tensor.std(correction=0) + 0.5) * torch.randn_like(tensor).clamp(-3, 3)
            if name.endswith("running_var"):
                tensor.abs_()
    model.save_pretrained(directory)
    return model.eval()
