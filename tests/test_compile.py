"""torch.compile: one graph, one compilation for all image sizes, the same numbers, in training too."""

import copy

import pytest
import torch
from tiny_model import tiny_inputs, tiny_labels, tiny_model
from torch._dynamo.utils import counters

SIZES = [((96, 128), (64, 96)), ((128, 160), (128, 160)), ((80, 64), (64, 64)), ((96, 224), (96, 200))]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("optimized", [False, True])
@torch.no_grad()
def test_one_graph_serves_all_image_sizes(optimized):
    model = tiny_model()
    if optimized:
        model.optimize_for_inference()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for sizes in SIZES:
        inputs = tiny_inputs(sizes)
        torch.testing.assert_close(compiled(*inputs).pred_boxes, model(*inputs).pred_boxes, rtol=0, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1


def test_training_compiles_all_but_the_loss():
    """As `compile: true` does in training: matching is scipy's, so the loss stays outside."""
    plain = tiny_model().train()
    compiled = copy.deepcopy(plain)
    compiled.base_model.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    for sizes in SIZES[:3]:
        labels = tiny_labels((3, 0))
        losses = [model(*tiny_inputs(sizes), labels=labels).loss for model in (plain, compiled)]
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-5)
        for loss in losses:
            loss.backward()
    assert counters["stats"]["unique_graphs"] == 1
    for wanted, found in zip(plain.parameters(), compiled.parameters(), strict=True):
        if wanted.grad is not None:
            torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_exports_with_dynamic_batch_and_size():
    model = tiny_model()
    dynamic = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    shapes = {"pixel_values": dynamic, "pixel_mask": {0: dynamic[0], 1: dynamic[2], 2: dynamic[3]}}
    pixels, mask = tiny_inputs(SIZES[0])
    program = torch.export.export(model, (pixels,), {"pixel_mask": mask}, dynamic_shapes=shapes, strict=False)
    for sizes in (*SIZES, ((96, 96),) * 3):
        pixels, mask = tiny_inputs(sizes)
        found = program.module()(pixels, pixel_mask=mask)
        torch.testing.assert_close(found.logits, model(pixels, mask).logits, rtol=0, atol=1e-5)
