"""What a benchmark times: one call of a forward pass, a training step, the loss alone, or an image processor."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import transformers
from PIL import Image
from torch import nn
from transformers import PreTrainedModel
from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

import sap_detr_hf
from sap_detr_hf.model.loss import sap_detr_loss
from sap_detr_hf.training.model import compile_transformer
from sap_detr_hf.weights.pretrained import AUTOCAST_DTYPES

from .models import box_labels, build_model, image_batch


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Args:
        task: a key of `TASKS`.
        model: of [`build_model`]; for "processor" the name of an image processor's class.
        dtype: "float32", "bfloat16" or "float16"; weights stay float32, all but "float32" is autocast.
        height, width: of the images in pixels.
        batch_size: images per call.
        device: "cpu" or "cuda".
        overrides: fields of SAP-DETR's configuration.
    """

    task: str
    model: str
    dtype: str = "float32"
    height: int = 800
    width: int = 1066
    batch_size: int = 1
    device: str = "cpu"
    overrides: dict[str, Any] = field(default_factory=dict)

    def build(self) -> PreTrainedModel:
        """The model on the device, its convolutions channels last on a GPU."""
        model: Any = build_model(self.model, **self.overrides)
        model = model.to(self.device)
        if self.model.endswith(":kernel"):
            use_deformable_kernel(model)
        return model if self.device == "cpu" else model.to(memory_format=torch.channels_last)

    def inputs(self) -> dict[str, torch.Tensor]:
        """One batch of images on the device."""
        batch = image_batch(self.height, self.width, self.batch_size)
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def autocast(self) -> torch.autocast:
        """The precision that the case asks for."""
        return torch.autocast(self.device, AUTOCAST_DTYPES[self.dtype], enabled=AUTOCAST_DTYPES[self.dtype] is not None)


def use_deformable_kernel(model: PreTrainedModel) -> None:
    """Let the Hub's kernel compute deformable attention.

    Raises:
        ValueError: it cannot be loaded here, or the model has no deformable attention.
    """
    model.set_use_kernels(True)
    sampling = [module for module in model.modules() if isinstance(module, MultiScaleDeformableAttention)]
    if all(module.forward.__func__ is MultiScaleDeformableAttention.forward for module in sampling):  # type: ignore[attr-defined]
        raise ValueError("The kernel `kernels-community/deformable-detr` is not to be had here.")


def forward_pass(case: Case) -> Callable[[], Any]:
    """A model's forward pass without labels."""
    model, inputs = case.build(), case.inputs()

    def call():
        with torch.no_grad(), case.autocast():
            return model(**inputs)

    return call


def training_step(case: Case) -> Callable[[], Any]:
    """Forward with auxiliary losses for 7 boxes an image, backward, clipping and AdamW.

    With `:compiled`, encoder and decoder are compiled, as training with the setting `compile` does.
    """
    if case.model.endswith(":optimized"):
        raise ValueError(f"{case.model!r} cannot be trained: leave out :optimized")
    name = case.model.removesuffix(":compiled")
    model, inputs = replace(case, model=name).build().train(), case.inputs()
    if name != case.model:
        compile_transformer(model)
    labels = [{name: t.to(case.device) for name, t in label.items()} for label in box_labels(case.batch_size, 7)]
    return optimizer_step(model, {**inputs, "labels": labels}, case.autocast)


def optimizer_step(
    model: PreTrainedModel, batch: dict[str, Any], autocast: Callable[[], AbstractContextManager] = nullcontext
) -> Callable[[], Any]:
    """Forward, backward, clipping and AdamW on all parameters with a gradient."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-6, fused=True)

    def call():
        optimizer.zero_grad()
        with autocast():
            loss = model(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 0.1)
        optimizer.step()

    return call


def loss_alone(case: Case) -> Callable[[], Any]:
    """Matching, loss and its gradient for six layers' predictions, 20 boxes an image."""
    with torch.device("meta"):
        model = build_model(case.model)
    config, layers = model.config, 6  # type: Any, int
    shape = (layers, case.batch_size, config.num_queries)
    logits = (torch.randn(*shape, 91, device=case.device) - 4).requires_grad_()
    boxes = (0.3 + 0.3 * torch.rand(*shape, 4, device=case.device)).requires_grad_()
    labels = [{name: t.to(case.device) for name, t in label.items()} for label in box_labels(case.batch_size, 20)]
    if not isinstance(model, sap_detr_hf.SapDetrPreTrainedModel):
        last = logits[-1], labels, case.device, boxes[-1], config
        return lambda: model.loss_function(*last, logits, boxes)[0].backward()
    points, objectness = torch.rand(*shape, 2, device=case.device), torch.randn(*shape, 1, device=case.device)
    return lambda: sap_detr_loss(logits, labels, boxes, points, objectness, config)[0].backward()


def preprocess(case: Case) -> Callable[[], Any]:
    """An image processor at its default size on noise pictures without annotations."""
    processor = (getattr(sap_detr_hf, case.model, None) or getattr(transformers, case.model))()
    images = [Image.effect_noise((case.width, case.height), 80).convert("RGB") for _ in range(case.batch_size)]
    return lambda: processor(images=images, return_tensors="pt")


TASKS: dict[str, Callable[[Case], Callable[[], Any]]] = {
    "forward": forward_pass,
    "training": training_step,
    "loss": loss_alone,
    "processor": preprocess,
}
