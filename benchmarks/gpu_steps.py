"""The steps of [`benchmarks.measure_gpu`], the most valuable first, each with its result so far after every part."""

import gc
import json
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from sap_detr_hf.demo.digits import make_digits
from sap_detr_hf.weights.backbone import PACKAGED

from .gaussian_forms import GAUSSIAN_FORMS, gradient_errors
from .measure import matrix_product, paired_seconds, summary
from .models import build_model
from .tasks import TASKS, Case

ROOT = Path(__file__).parents[1]
LAUNCHER_CONFIG = ROOT / "src" / "sap_detr_hf" / "recipes" / "accelerate" / "gpu_1.yaml"
TRANSFORMER = {"encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
STAGES = ["stage2", "stage3", "stage4"]
BACKBONE = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [16, 16, 24, 32], "depths": [1, 1, 1, 1],
            "layer_type": "basic"}  # fmt: skip
SYNCHRONIZED = "called a synchronizing CUDA operation"


@dataclass(frozen=True)
class Size:
    """Sizes of all steps.

    Args:
        device: "cuda", or "cpu" for a dry run.
        height, width: of the images in pixels.
        batch_size: images per call; a model that does not fit takes half as many, until it does.
        rounds: counted rounds, after two that do not count.
        toy: a dry run's: models of a few thousand parameters, four training images.
    """

    device: str = "cuda"
    height: int = 800
    width: int = 1066
    batch_size: int = 16
    rounds: int = 7
    toy: bool = False

    def case(self, task: str, model: str, batch_size: int | None = None) -> Case:
        """A case of this size, in bfloat16."""
        toy = toy_fields(model.partition(":")[0]) if self.toy else {}
        return Case(task, model, "bfloat16", self.height, self.width, batch_size or self.batch_size, self.device, toy)


DRY_RUN = Size("cpu", height=64, width=96, batch_size=2, rounds=1, toy=True)


def toy_fields(variant: str) -> dict[str, Any]:
    """Configuration fields that make a model as small as can be."""
    if variant.startswith(("dino", "deformable")):
        pyramid = {"backbone_config": {**BACKBONE, "out_features": STAGES}, "d_model": 64, "num_queries": 12}
        return {**TRANSFORMER, **pyramid, **({"two_stage_num_proposals": 12} if variant[1] == "e" else {})}
    last_stage = {**TRANSFORMER, "backbone_config": {**BACKBONE, "out_features": STAGES[-1:]}}
    if variant.startswith("dab"):
        return {**last_stage, "hidden_size": 64, "num_queries": 12}
    return {**last_stage, "d_model": 64, "query_grid": [3, 4]}


def gpu_tests(size: Size) -> Iterator[dict]:
    """Run `tests/test_gpu.py`; without a GPU it is only collected."""
    import pytest

    outcomes: dict[str, Any] = {"passed": 0, "skipped": 0, "failed": []}

    class Outcomes:
        def pytest_runtest_logreport(self, report):
            if report.failed:
                outcomes["failed"].append(report.nodeid.partition("::")[2])
            elif report.skipped or report.when == "call":
                outcomes[report.outcome] += 1

    beside = ["-n", "4"] if not size.toy and find_spec("xdist") else []
    # A line for each test: they say in the log how far a run came that took too long
    options = ["-vv", "-p", "no:cacheprovider", *beside]
    code = pytest.main([str(ROOT / "tests" / "test_gpu.py"), *options], plugins=[Outcomes()])
    yield outcomes
    if code != 0:
        raise SystemExit(f"pytest ended with {code!r}")


def demo_training(size: Size) -> Iterator[dict]:
    """Train the demo in bfloat16 through `accelerate launch`, with NCCL, and once more from the middle."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, side = Path(temporary), 64 if size.toy else 128
        make_digits(folder / "digits", 4 if size.toy else 1600, 2 if size.toy else 150, (side, side))
        settings = {
            "data": folder / "digits", "backbone_weights": PACKAGED, "cache_dir": folder / "cache",
            "mixed_precision": "bf16", "workers": 0 if size.toy else 8, "log_steps": 1 if size.toy else 10,
            "effective_batch": 2 if size.toy else 16, "images_per_device": 2 if size.toy else 16,
            "epochs": 2 if size.toy else 6, "evaluation_epochs": 2 if size.toy else 3,
            "checkpoint_epochs": 1 if size.toy else 3, "shortest_edge": side, "longest_edge": side,
        }  # fmt: skip
        result: dict[str, Any] = {"nccl": _launch(size, {**settings, "output_dir": folder / "whole"})}
        losses, precisions = _metrics(folder / "whole")
        tenth = max(1, len(losses) // 10)
        first, last = (sum(part) / tenth for part in (losses[:tenth], losses[-tenth:]))
        result |= {"first_loss": first, "last_loss": last, "last_step_loss": losses[-1], "AP": precisions}
        yield result
        half = min((folder / "whole" / "checkpoints").glob("step_*.pt"))
        _launch(size, {**settings, "output_dir": folder / "resumed", "resume": half})
        losses, precisions = _metrics(folder / "resumed")
        yield {**result, "resumed_from": half.stem, "resumed_last_step_loss": losses[-1], "resumed_AP": precisions}


def _launch(size: Size, settings: dict[str, Any]) -> str | None:
    """Train the demo's recipe with `settings`; returns what NCCL says of its version."""
    train = ["train", "demo", *(text for name, value in settings.items() for text in (f"--{name}", str(value)))]
    arguments = ["--config_file", str(LAUNCHER_CONFIG), "-m", "sap_detr_cli", *train]
    if size.toy:  # the launcher checks its options, and starts nothing: importing all takes longer than the training
        from accelerate.commands.launch import launch_command_parser

        assert launch_command_parser().parse_args(arguments).training_script_args == train
        process = multiprocessing.get_context("fork").Process(target=_train_here, args=(train,))
        process.start()
        process.join()
        if process.exitcode != 0:
            raise RuntimeError(f"training ended with {process.exitcode}")
        return None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1",
             "MASTER_PORT": port, "NCCL_DEBUG": "VERSION"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *arguments],
        env={**os.environ, **{name: str(value) for name, value in group.items()}},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    print(done.stdout)
    if done.returncode != 0:
        raise RuntimeError(f"`accelerate launch` ended with {done.returncode}")
    version = re.search(r"NCCL version \S+", done.stdout)
    return version and version.group()


def _train_here(arguments: list[str]) -> None:
    from sap_detr_cli.main import main

    os.environ["ACCELERATE_USE_CPU"] = "true"
    sys.exit(main(arguments))


def _metrics(folder: Path) -> tuple[list[float], list[float]]:
    """Losses and APs of a run in their order."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["loss"] for line in lines if "loss" in line], [line["AP"] for line in lines if "AP" in line]


def synchronization(size: Size) -> Iterator[dict]:
    """Count where forward passes and training steps wait for the GPU; matching may wait once."""
    found: dict[str, dict[str, list[str]]] = {}
    for model in ("r50", "r50:optimized", "r50-plus", "dino-r50"):
        found[model] = {}
        for task in ("forward",) if ":" in model else ("forward", "training"):
            action = TASKS[task](size.case(task, model, batch_size=2))
            action()  # libraries set themselves up
            action()
            found[model][task] = synchronizations(action, size.device)
        yield found


def synchronizations(action: Callable[[], Any], device: str = "cuda") -> list[str]:
    """One line of this project's code (or of a library's) for each time that an action waits for the GPU."""
    places: list[str] = []

    def note(message, *_, **__):
        if SYNCHRONIZED in str(message):
            stack = traceback.extract_stack()[:-1]
            places.append(_place([frame for frame in stack if frame.filename != warnings.__file__]))

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        if device != "cpu":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            action()
        finally:
            if device != "cpu":
                torch.cuda.set_sync_debug_mode("default")
    return places


def _place(stack: list[traceback.FrameSummary]) -> str:
    """The innermost frame of the project's code, else the innermost one."""
    own = [frame for frame in stack if "sap_detr_hf" in frame.filename]
    frame = (own or stack)[-1]
    return f"{'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno} in {frame.name}"


def forward(size: Size) -> Iterator[dict]:
    """Time forward passes in bfloat16: compiled, and as loaded."""
    models = ("dab-detr-r50", "r50:compiled", "dab-detr-r50:compiled", "dino-r50:compiled", "r50-dc5",
              "deformable-detr-r50")  # fmt: skip
    for rows in measured([size.case("forward", model) for model in models], size.rounds, share=True):
        yield {"rows": rows}


def training(size: Size) -> Iterator[dict]:
    """Time training steps in bfloat16, not compiled."""
    models = ("dab-detr-r50", "r50", "r50-plus", "dino-r50")
    for rows in measured([size.case("training", model) for model in models], size.rounds):
        yield {"rows": rows}


def measured(cases: list[Case], rounds: int, share: bool = False) -> Iterator[list[dict]]:
    """Measure each case beside the first one; yield the rows so far after each.

    Args:
        cases: all of one task, dtype and device.
        share: count multiply-adds, and compare with the rate of a matrix product.

    Yields:
        A row for each case: a [`benchmarks.measure.Measurement`], or its `model` and `error`. A case that needs too
        much memory is measured with half the images, or fewer. `speedup` is of images a second.
    """
    products = [matrix_product(cases[0].dtype, cases[0].device)] if share else []
    reference: tuple[Case, Callable[[], Any]] | None = None
    rows: list[dict] = []
    for wanted in cases:
        try:
            case, action, peak = fitting(wanted)
            beside, reference_action = reference = reference or (case, action)
            seconds = paired_seconds([action, reference_action, *products], rounds, case.device)
            expected = [each * case.batch_size / beside.batch_size for each in seconds[1]]
            row = summary(case, seconds[0], expected, seconds[2] if products else None, memory=False)
            rows.append(asdict(replace(row, peak_mib=peak)))
            del action
        except Exception as error:  # the others can still be measured
            traceback.print_exc()
            rows.append({"model": wanted.model, "error": f"{type(error).__name__}: {error}".splitlines()[0]})
        _free_memory()
        yield rows


def fitting(case: Case) -> tuple[Case, Callable[[], Any], float | None]:
    """The case with as many images as fit, its action after a first call, and MiB that a call takes at its peak.

    Raises:
        torch.OutOfMemoryError: not even one image fits.
    """
    while True:
        try:
            return case, *_started(case)
        except torch.OutOfMemoryError:
            if case.batch_size == 1:
                raise
        _free_memory()  # here, where the error holds no tensors any more
        case = replace(case, batch_size=case.batch_size // 2)


def _started(case: Case) -> tuple[Callable[[], Any], float | None]:
    action = TASKS[case.task](case)
    on_gpu = case.device != "cpu"
    before = torch.cuda.memory_allocated() if on_gpu else 0
    action()  # compiles, and makes the optimizer's state
    if not on_gpu:
        return action, None
    torch.cuda.reset_peak_memory_stats()
    action()
    return action, (torch.cuda.max_memory_allocated() - before) / 2**20


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def gaussian(size: Size) -> Iterator[dict]:
    """Time the forms of the Gaussian in a forward pass and a training step, and compare their gradients."""
    learning = [form for form in GAUSSIAN_FORMS if not (form == "flex" and size.device == "cpu")]  # no gradient there
    result: dict[str, Any] = {}
    for task, forms in (("forward", [*GAUSSIAN_FORMS]), ("training", learning)):
        models = ["r50-dc5", *(f"r50-dc5:{form}" for form in forms)]
        for rows in measured([size.case(task, model) for model in models], size.rounds):
            result[task] = rows
            yield result
    model: Any = build_model("r50-dc5", **size.case("forward", "r50-dc5").overrides)
    errors = {form or "bias": gradient_errors(model, form, size.device) for form in (None, *learning)}
    yield {**result, "gradient_errors": errors}


def kernel(size: Size) -> Iterator[dict]:
    """Time SAP-DINO-DETR with the deformable attention kernel of the Hub, where its files are.

    `LOCAL_KERNELS=kernels-community/deformable-detr=FOLDER` names files on a machine without internet.
    """
    if not find_spec("kernels"):
        yield {"not_measured": "the package `kernels` is not installed"}
        return
    models = ("dino-r50", "dino-r50:kernel")
    for rows in measured([size.case("forward", model) for model in models], size.rounds):
        yield {"rows": rows}


STEPS: dict[str, Callable[[Size], Iterator[dict]]] = {
    "tests": gpu_tests,
    "demo": demo_training,
    "synchronization": synchronization,
    "forward": forward,
    "training": training,
    "gaussian": gaussian,
    "kernel": kernel,
}
