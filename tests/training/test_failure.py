"""The first bad tensor is named: input, weight, module output or gradient."""

import pytest
import torch
from tiny_training import TINY_MODEL

from sap_detr_hf import SapDetrConfig, SapDetrForObjectDetection
from sap_detr_hf.distributed import one_sentence
from sap_detr_hf.training.failure import first_bad_tensor


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SapDetrForObjectDetection(SapDetrConfig(num_labels=3, **TINY_MODEL))


@pytest.fixture
def batch():
    label = {
        "image_id": torch.tensor([17]),
        "class_labels": torch.tensor([1]),
        "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]]),
    }
    return {"pixel_values": torch.rand(1, 3, 64, 64), "pixel_mask": torch.ones(1, 64, 64), "labels": [label]}


def test_inputs(model, batch):
    batch["labels"][0]["boxes"][0, 2] = float("nan")
    assert first_bad_tensor(model, batch) == "the input boxes of image 17 (number 0 of the batch)"
    batch["pixel_values"][0, 0, 0, 0] = float("inf")
    assert first_bad_tensor(model, batch) == "the input pixel_values"


def test_weights(model, batch):
    with torch.no_grad():
        model.model.query_sides.weight[0] = float("nan")
    assert first_bad_tensor(model, batch) == "the weight model.query_sides.weight"


def test_module_outputs_in_the_order_of_computation(model, batch):
    with torch.no_grad():
        model.objectness_head.bias.fill_(3e38)
        model.objectness_head.weight.fill_(3e38)
    assert first_bad_tensor(model, batch) == "the output of objectness_head"
    with torch.no_grad():
        model.model.input_projection.weight.fill_(3e38)
    assert first_bad_tensor(model, batch) == "the output of model.input_projection"


def test_loss_can_be_left_out(model, batch, monkeypatch):
    def fail(*positional, **named):
        raise AssertionError("a loss that waits for other processes")

    monkeypatch.setattr(model, "loss_function", fail)
    with pytest.raises(AssertionError, match="waits for other processes"):
        first_bad_tensor(model, batch)
    assert first_bad_tensor(model, batch, with_loss=False).startswith("not found")


def test_gradients(model, batch):
    model.objectness_head.weight.grad = torch.full_like(model.objectness_head.weight, float("nan"))
    assert first_bad_tensor(model, batch) == "the gradient of objectness_head.weight"
    model.objectness_head.weight.grad = None
    assert first_bad_tensor(model, batch).startswith("not found")


def test_worker_errors_become_one_sentence():
    text = (
        "Caught OSError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\nOSError: bad: x"
    )
    assert one_sentence(OSError(text)) == "bad: x"
    assert one_sentence(ValueError("two\n lines")) == "two lines"
    assert one_sentence(ValueError()) == "ValueError"
