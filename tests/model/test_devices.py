"""Nothing waits for the device: models on a pretended GPU, whose tensors have a shape and a place but no values.

PyTorch refuses what would mix devices or look at values; copies between the devices are counted. See `test_gpu.py` for
the same on a real one.
"""

import pytest
import torch
from tiny_model import tiny_inputs, tiny_labels, tiny_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gaussian_forms import gaussian_form
from sap_detr_hf.model import loss as loss_sap_detr


class Copies(TorchDispatchMode):
    """Keeps the shapes of the tensors copied from the GPU to the CPU and back."""

    def __init__(self):
        super().__init__()
        self.to_cpu, self.to_gpu = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[-1] if func is torch.ops.aten._to_copy.default else args[1]
            if source.device != out.device:
                (self.to_cpu if out.device.type == "cpu" else self.to_gpu).append(tuple(out.shape))
        return out


@pytest.fixture
def gpu():
    return FakeTensorMode()


def on(gpu, value, device="cuda"):
    """The same structure with every tensor on the pretended GPU, or without values on the CPU."""
    if isinstance(value, dict):
        return {name: on(gpu, each, device) for name, each in value.items()}
    if not isinstance(value, torch.Tensor):
        return type(value)(on(gpu, each, device) for each in value)
    with gpu:
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)


def model_on(gpu, model):
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(on(gpu, parameter), requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = on(gpu, buffer)
    return model


def optimized(model):
    return model.optimize_for_inference()


def channels(model):
    return gaussian_form(model, "channels")


@torch.no_grad()
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("form", [tiny_model, optimized, channels])
def test_forward_pass_stays_on_the_gpu(gpu, form, masked):
    model = model_on(gpu, tiny_model() if form is tiny_model else form(tiny_model()))
    pixels, mask = on(gpu, tiny_inputs())
    with gpu, Copies() as copies:
        outputs = model(pixels, mask if masked else None)
    assert all(outputs[name].device.type == "cuda" for name in ("logits", "pred_boxes", "pred_points"))
    assert not copies.to_cpu
    assert not copies.to_gpu


@pytest.mark.parametrize("labels_on_gpu", [True, False])
def test_loss_fetches_the_costs_alone(gpu, monkeypatch, labels_on_gpu):
    """The matching is given, because there are no costs to match by; its indices go to the GPU in three copies."""
    model = model_on(gpu, tiny_model().train())
    counts, layers, queries = (3, 1), model.config.decoder_layers, model.config.num_queries
    match = loss_sap_detr.match_queries

    def given(predictions, targets, labels, config):
        with pytest.raises(RuntimeError, match="numpy"):
            match(predictions, targets, labels, config)
        return [[(torch.arange(count), torch.arange(count)) for count in counts] for _ in range(layers)]

    monkeypatch.setattr(loss_sap_detr, "match_queries", given)
    labels = on(gpu, tiny_labels(counts), "cuda" if labels_on_gpu else "cpu")
    inputs = on(gpu, tiny_inputs())
    with gpu, Copies() as copies:
        loss = model(*inputs, labels=labels).loss  # the backward pass would need a GPU
    assert copies.to_cpu == [(layers, len(counts), queries, max(counts))]
    padded = [] if labels_on_gpu else [(2, 3), (2, 3, 4)]
    assert copies.to_gpu == [*padded, *[(layers, sum(counts))] * 3]
    assert loss.device.type == "cuda"
