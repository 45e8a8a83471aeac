"""torch.compile: one graph, one compilation for all image sizes, the same numbers, in training too."""

import copy

import pytest
import torch
from tiny_model import tiny_inputs, tiny_labels, tiny_model
from torch import distributed, nn
from torch._dynamo.utils import counters

from sap_detr_hf.distributed import end_processes
from sap_detr_hf.training.model import compile_transformer

SIZES = [((96, 128), (64, 96)), ((128, 160), (128, 160)), ((80, 64), (64, 64)), ((96, 224), (96, 200))]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("optimized", "gaussian", "backend"),
    [(False, True, "aot_eager"), (True, True, "eager"), (False, False, "eager")],
)
@torch.no_grad()
def test_one_graph_serves_all_image_sizes(optimized, gaussian, backend):
    model = tiny_model(encoder_layers=1, decoder_layers=2, side_directed_gaussian=gaussian)
    if optimized:
        model.optimize_for_inference()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for sizes in SIZES:
        inputs = tiny_inputs(sizes)
        torch.testing.assert_close(compiled(*inputs).pred_boxes, model(*inputs).pred_boxes, rtol=0, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1


def step(model, sizes):
    model(*tiny_inputs(sizes), labels=tiny_labels((3, 0))).loss.backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def assert_same_steps(plain, compiled, all_sizes):
    for sizes in all_sizes:
        for wanted, found in zip(step(plain, sizes), step(compiled, sizes), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_training_compiles_encoder_and_decoder():
    """By the real compiler: once for the first size, once for all others."""
    plain = tiny_model(encoder_layers=1, decoder_layers=1).train()
    compiled = copy.deepcopy(plain)
    compile_transformer(compiled)
    assert_same_steps(plain, compiled, SIZES)
    assert counters["stats"]["unique_graphs"] == 4


@pytest.mark.parametrize("checkpointed", [False, True])
def test_training_compiles_beside_other_processes(checkpointed, tmp_path):
    """Their gradients travel in parts, at which the graph is split."""
    plain = tiny_model(encoder_layers=1, decoder_layers=2, encoder_ffn_dim=16384).train()  # several MiB of gradients
    if checkpointed:
        plain.gradient_checkpointing_enable({"use_reentrant": False})
    compiled = copy.deepcopy(plain)
    compile_transformer(compiled, backend="aot_eager")
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        compiled = nn.parallel.DistributedDataParallel(compiled, bucket_cap_mb=1, find_unused_parameters=True)
        assert_same_steps(plain, compiled, SIZES[:2])
    finally:
        del compiled
        end_processes()


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
