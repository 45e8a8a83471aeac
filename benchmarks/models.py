"""The models that benchmarks compare: SAP-DETR and SAP-DINO-DETR in their forms, and transformers' DETRs."""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForObjectDetection,
    ConditionalDetrConfig,
    ConditionalDetrForObjectDetection,
    DabDetrConfig,
    DabDetrForObjectDetection,
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    DetrConfig,
    DetrForObjectDetection,
    PreTrainedModel,
)

from sap_detr_hf import SapDetrForObjectDetection
from sap_detr_hf.model.configuration_sap_detr import R50_BACKBONE
from sap_detr_hf.model.configuration_sap_dino_detr import R50_PYRAMID
from sap_detr_hf.model.deformable_attention import SapDinoDetrDeformableAttention
from sap_detr_hf.training.model import allow_compilations
from sap_detr_hf.weights.variants import VARIANTS, config_of_variant

from .gaussian_forms import GAUSSIAN_FORMS, gaussian_form
from .released_form import released_form

# Two-stage with box refinement, the pyramid of DINO and SAP-DINO-DETR
DEFORMABLE = {
    "backbone_config": R50_PYRAMID, "num_feature_levels": 4, "two_stage": True, "with_box_refine": True
}  # fmt: skip
# As large as SAP-DINO-DETR
LARGE = {
    "num_queries": 900, "two_stage_num_proposals": 900, "encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048, "dropout": 0.0
}  # fmt: skip
PEERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "dab-detr-r50": (DabDetrConfig, DabDetrForObjectDetection, {}),
    "conditional-detr-r50": (ConditionalDetrConfig, ConditionalDetrForObjectDetection, {}),
    "detr-r50": (DetrConfig, DetrForObjectDetection, {}),
    "deformable-detr-r50": (DeformableDetrConfig, DeformableDetrForObjectDetection, {**DEFORMABLE, **LARGE}),
    "deformable-detr-r50-small": (DeformableDetrConfig, DeformableDetrForObjectDetection, DEFORMABLE),
}
FORMS = {
    "": "as `from_pretrained` gives it",
    "optimized": "after `optimize_for_inference()`",
    "compiled": "after `optimize_for_inference()` and `torch.compile`; in training, encoder and decoder are compiled",
    "released": "computed as the released code does",
    "channels": "the Gaussian as further channels of queries and keys",
    "flex": "the Gaussian in flex attention",
    "kernel": "deformable attention by the Hub's kernel, on a GPU",
    "grid-sample": "deformable attention by transformers' `grid_sample` on a CPU too, where we have a faster one",
    "trained": "transformers' DETRs with a ResNet that learns from its second stage on, as their authors train it",
}
MODELS = (*VARIANTS, *PEERS)


def build_model(name: str, **overrides) -> PreTrainedModel:
    """A model with random weights and 91 classes, in evaluation mode.

    Args:
        name: one of `MODELS`; SAP-DETR's may be followed by `:` and one of `FORMS`, transformers' DETRs by `:compiled`
            or `:trained`.
        overrides: configuration fields, such as `query_grid`.

    Raises:
        ValueError: no such model or form.
    """
    variant, _, form = name.partition(":")
    if variant in PEERS and form in ("", "compiled", "trained"):
        config, model, own = PEERS[variant]
        fields = {
            "backbone_config": R50_BACKBONE,
            "use_timm_backbone": False,
            "backbone": None,
            "num_labels": 91,
            **own,
        }
        peer = model(config.from_dict({**fields, "auxiliary_loss": True, **overrides})).eval()
        if form == "trained":
            train_backbone(peer)
        return compiled(peer) if form == "compiled" else peer
    if variant not in VARIANTS or form not in FORMS or form == "trained":
        forms = ", ".join(form for form in FORMS if form)
        raise ValueError(f"Unknown model {name!r}: choose of {', '.join(MODELS)}, SAP-DETR's with :{forms} if wanted.")
    sap_detr = AutoModelForObjectDetection.from_config(config_of_variant(variant, **overrides)).eval()
    if form in ("released", *GAUSSIAN_FORMS) and not isinstance(sap_detr, SapDetrForObjectDetection):
        raise ValueError(f"{variant!r} has no Gaussian, and so no form {form!r}: choose another.")
    if form == "released":
        return released_form(sap_detr)
    if form in GAUSSIAN_FORMS:
        return gaussian_form(sap_detr, form)
    if form == "grid-sample":
        sample_by_transformers(sap_detr)
    if form in ("optimized", "compiled"):
        sap_detr.optimize_for_inference()
    return compiled(sap_detr) if form == "compiled" else sap_detr


def sample_by_transformers(model: PreTrainedModel) -> None:
    """Let a SAP-DINO-DETR sample on a CPU as on every other device."""
    attentions = [module for module in model.modules() if isinstance(module, SapDinoDetrDeformableAttention)]
    if not attentions:
        raise ValueError(f"A {model.config.model_type} model samples nothing: choose another form than 'grid-sample'.")
    for attention in attentions:
        attention.sample = attention.sample_anywhere  # type: ignore[method-assign]


def train_backbone(model: PreTrainedModel) -> None:
    """Let the convolutions of a transformers ResNet learn from its second stage on, and no others.

    Transformers 5 looks for `stage.1` in its own ResNet, which says `stages.1`, and so freezes all of it.
    """
    for name, parameter in model.named_parameters():
        if "backbone" in name.split("."):
            parameter.requires_grad_(re.search(r"encoder\.stages\.[1-3]\.", name) is not None and parameter.dim() == 4)


def compiled(model: PreTrainedModel) -> PreTrainedModel:
    """Compile a model in place for inference: its weights become constants, laid out for the device."""
    allow_compilations()  # a run may compare many compiled models
    model.compile(options={"freezing": True})
    return model


def count_cost(name: str, height: int, width: int, **overrides) -> tuple[int, int]:
    """Parameters, and multiply-adds of one image's convolutions, matrix products and attention; before any folding."""
    model, inputs = _model_to_count(name, height, width, **overrides)
    with torch.no_grad():
        return model.num_parameters(), multiply_adds(lambda: model(**inputs))


def count_training_products(name: str, height: int, width: int, **overrides) -> int:
    """Multiply-adds of one image's forward and backward pass, without the heads that each layer's loss takes."""
    model, inputs = _model_to_count(name, height, width, **overrides)
    return multiply_adds(lambda: model.train().base_model(**inputs).last_hidden_state.sum().backward())


def multiply_adds(call: Callable[[], Any]) -> int:
    """Multiply-adds of a call's convolutions, matrix products and attention."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() // 2


def _model_to_count(name: str, height: int, width: int, **overrides) -> tuple[Any, dict[str, torch.Tensor]]:
    """A model before any folding, and one image for it; without memory where the model allows it."""
    variant = name.partition(":")[0]
    values = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(values if variant in PEERS else "meta"):  # the peers look at the values of their masks
        model = build_model(name if name.endswith(":released") else variant, **overrides)
        inputs = image_batch(height, width, 1)
    if not name.endswith(":released"):
        model.set_attn_implementation("eager")  # the same products as in every other implementation
    return model, inputs


def image_batch(height: int, width: int, batch_size: int) -> dict[str, torch.Tensor]:
    """Random `pixel_values` (B, 3, height, width) and a full `pixel_mask`."""
    pixels = torch.randn(batch_size, 3, height, width)
    return {"pixel_values": pixels, "pixel_mask": torch.ones(batch_size, height, width, dtype=torch.long)}


def box_labels(batch_size: int, boxes: int, num_labels: int = 91) -> list[dict[str, torch.Tensor]]:
    """Random labels that every compared model takes."""
    return [
        {"class_labels": torch.randint(0, num_labels, (boxes,)), "boxes": 0.2 + 0.4 * torch.rand(boxes, 4)}
        for _ in range(batch_size)
    ]
