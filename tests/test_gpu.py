"""What only a GPU can show: the same numbers, no hidden synchronization, one graph, the Gaussian's other forms."""

import copy
import subprocess
import sys
import warnings
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from tiny_dino import tiny_dino
from tiny_model import tiny_inputs, tiny_labels, tiny_model
from tiny_training import ENVIRONMENT, SCRIPT, write_recipe
from torch._dynamo.utils import counters

from benchmarks.gaussian_forms import GAUSSIAN_FORMS, gaussian_form
from sap_detr_hf.demo.digits import make_digits
from sap_detr_hf.export.comparison import in_order_of
from sap_detr_hf.training.model import compile_transformer

FORMS = [None, *GAUSSIAN_FORMS]
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
OUTPUTS = ("logits", "pred_boxes", "pred_points", "pred_objectness")


@pytest.fixture(autouse=True)
def exact_products():
    """Without TF32. (`monkeypatch` fails on these settings, which are no plain attributes.)"""
    settings = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [each.allow_tf32 for each in settings]
    for each in settings:
        each.allow_tf32 = False
    yield
    for each, allowed in zip(settings, before, strict=True):
        each.allow_tf32 = allowed


def on_gpu(values):
    if isinstance(values, torch.Tensor):
        return values.cuda()
    if isinstance(values, dict):
        return {name: value.cuda() for name, value in values.items()}
    return type(values)(map(on_gpu, values))


def gradients(model):
    return {name: parameter.grad.cpu() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("form", FORMS)
def test_outputs_and_gradients_are_those_of_a_cpu(form):
    expected_model = tiny_model(d_model=64).train()  # flex attention takes heads of at least 16 values
    model = copy.deepcopy(expected_model).cuda()
    if form is not None:
        gaussian_form(model, form)
    expected = expected_model(*tiny_inputs(), labels=tiny_labels())
    found = model(*on_gpu(tiny_inputs()), labels=on_gpu(tiny_labels()))
    for name in OUTPUTS:
        torch.testing.assert_close(found[name].cpu(), expected[name], rtol=0, atol=1e-4)
    expected.loss.backward()
    found.loss.backward()
    expected_gradients = gradients(expected_model)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-2, atol=1e-4, msg=name)


@torch.no_grad()
def test_sap_dino_outputs_are_those_of_a_cpu():
    """Its own sampling on a CPU, transformers' on the GPU; tokens of nearly one score may change places."""
    expected = tiny_dino()(*tiny_inputs())
    found = tiny_dino().cuda()(*on_gpu(tiny_inputs()))
    ordered = in_order_of(expected, SimpleNamespace(**{name: found[name].cpu() for name in OUTPUTS}))
    for name, values in vars(ordered).items():
        torch.testing.assert_close(values, expected[name], rtol=0, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_close_to_float32(form, dtype):
    expected = tiny_model(d_model=64)(*tiny_inputs())
    model = tiny_model(d_model=64).cuda()
    if form is not None:
        gaussian_form(model, form)
    with torch.autocast("cuda", dtype):
        found = model(*on_gpu(tiny_inputs()))
    torch.testing.assert_close(found.pred_boxes.float().cpu(), expected.pred_boxes, rtol=0, atol=0.05)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_are_finite_in_half_precision(form, dtype):
    model = tiny_model(d_model=64).cuda().train()
    if form is not None:
        gaussian_form(model, form)
    # 8 x 8 tokens, some of them padding: with 64 after each 128, cuDNN's gradient has been NaN on H100 and H200
    inputs, labels = on_gpu(tiny_inputs(((256, 256), (160, 200)))), on_gpu(tiny_labels())
    with torch.autocast("cuda", dtype):
        loss = model(*inputs, labels=labels).loss
    loss.backward()
    for name, gradient in gradients(model).items():
        assert gradient.isfinite().all(), name


@pytest.mark.parametrize("compiled", [False, True])
def test_training_with_nccl(tmp_path, compiled):
    """One process that a launcher starts: what only works between GPUs must not be asked of the CPU."""
    make_digits(tmp_path / "digits", train=8, val=2, size=(64, 64))
    recipe = write_recipe(tmp_path / "recipe.yaml", data=str(tmp_path / "digits"), cache_dir=str(tmp_path / "cache"))
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "ACCELERATE_USE_CPU"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1", str(SCRIPT), recipe]
    command += ["--output_dir", str(tmp_path / "run"), "--mixed_precision", "bf16", "--evaluation_epochs", "1"]
    command += ["--compile", str(compiled).lower()]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model.safetensors").exists()


@torch.no_grad()
@pytest.mark.parametrize("optimized", [False, True])
@pytest.mark.parametrize("build", [tiny_model, tiny_dino])
def test_forward_pass_never_waits_for_the_gpu(build, optimized):
    model = build().cuda()
    if optimized:
        model.optimize_for_inference()
    inputs = on_gpu(tiny_inputs())
    model(*inputs)  # libraries set themselves up
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(*inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "build",
    [
        tiny_model,
        partial(tiny_model, num_groups=2, group_content=True, denoising_pairs=5),
        partial(tiny_dino, denoising_pairs=5),
    ],
)
def test_training_step_waits_for_the_matching_alone(build):
    """Forward and backward pass with labels on the GPU: all layers' costs come to the CPU in one transfer."""
    model = build().cuda().train()
    inputs, labels = on_gpu(tiny_inputs()), on_gpu(tiny_labels())
    model(*inputs, labels=labels).loss.backward()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            model(*inputs, labels=labels).loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waited = "called a synchronizing CUDA operation"
    places = [f"{each.filename}:{each.lineno}" for each in caught if waited in str(each.message)]
    assert len(places) == 1, places


@torch.no_grad()
def test_one_graph_serves_all_sizes():
    model = tiny_model().cuda()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for sizes in (((96, 128), (64, 96)), ((160, 96), (160, 96))):
        inputs = on_gpu(tiny_inputs(sizes))
        torch.testing.assert_close(compiled(*inputs).pred_boxes, model(*inputs).pred_boxes, rtol=0, atol=1e-4)


def test_training_compiles_for_all_sizes():
    model = tiny_model(d_model=64).cuda().train()
    compiled = copy.deepcopy(model)
    compile_transformer(compiled)
    counters.clear()
    for sizes in (((96, 128), (64, 96)), ((160, 96), (160, 96)), ((96, 96), (64, 96))):
        inputs, labels = on_gpu(tiny_inputs(sizes)), on_gpu(tiny_labels())
        for each in (model, compiled):
            each(*inputs, labels=labels).loss.backward()
    assert counters["stats"]["unique_graphs"] == 4  # encoder and decoder, for the first size and for all others
    expected = gradients(model)
    for name, gradient in gradients(compiled).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-2, atol=1e-3, msg=name)
