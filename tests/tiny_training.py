"""Tiny data, model and settings with which the training tests run `scripts/train.py` for real."""

import importlib.util
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
import yaml
from accelerate.state import AcceleratorState, GradientState

SCRIPT = Path(__file__).parents[1] / "scripts" / "train.py"
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "ACCELERATE_USE_CPU": "true",
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
}

TINY_MODEL = {
    "backbone_config": {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [16, 16, 24, 32],  # 16 at least: see tiny_model.py
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
        "out_features": ["stage4"],
    },
    "freeze_backbone_batch_norm": False,
    "frozen_backbone_stages": 0,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "query_grid": [4, 4],
}
TINY_RUN = {
    "variant": "r50",
    "model_overrides": TINY_MODEL,
    "augmentation": "none",
    "shortest_edge": 64,
    "longest_edge": 96,
    "epochs": 2,
    "effective_batch": 4,
    "images_per_device": 2,
    "warmup_steps": 2,
    "learning_rate": 1e-3,
    "workers": 0,
    "log_steps": 1,
    "evaluation_epochs": 0,
}


def write_recipe(path: Path, **changes) -> str:
    """A recipe of TINY_RUN with `changes`."""
    path.write_text(yaml.safe_dump({**TINY_RUN, **changes}))
    return str(path)


def fresh_process_state():
    """Make Accelerate forget an earlier run of this process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def run_here(*arguments: str) -> int:
    """`train.py` in this process (no start-up time); returns its exit code."""
    spec = importlib.util.spec_from_file_location("train", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    fresh_process_state()
    os.environ["ACCELERATE_USE_CPU"] = "true"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return script.main([str(argument) for argument in arguments])
    finally:
        torch.set_num_threads(before)
        AcceleratorState._reset_state(reset_partial_state=True)


def start(*arguments: str, processes: int = 1) -> subprocess.Popen:
    """`train.py` in a process group of its own, on `processes` Gloo processes."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.Popen(
        [*launcher, str(SCRIPT), *map(str, arguments)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["sap_detr_hf.training.loop", "sap_detr_hf.demo.digits"])


def fork(log: Path, *arguments: str, machine: int | None = None, port: int = 0):
    """`train.py` in a process forked from one that has imported everything, its output in `log`.

    With `machine`, it is that one of two machines of one process each, as a launcher says it in the environment.
    """
    places = {"RANK": machine, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1,
              "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
    environment = {} if machine is None else {name: str(value) for name, value in places.items()}
    process = FORKS.Process(target=_run_forked, args=(log, environment, arguments))
    process.start()
    return process


def _run_forked(log: Path, environment: dict[str, str], arguments: tuple):
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environment, HF_HUB_OFFLINE="1")
    sys.exit(run_here(*arguments))


def newest_step(folder: Path) -> int:
    """Step of the newest checkpoint of a run; 0 where there is none."""
    return max((int(path.stem[5:]) for path in (folder / "checkpoints").glob("step_*.pt")), default=0)


def finish(process: subprocess.Popen, timeout: float = 120) -> tuple[int, str]:
    """Exit code and output; a process that hangs is killed and fails the test."""
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, output


def signal_after(process: subprocess.Popen, number: int, folder: Path, step: int):
    """Sends a signal to the process and its loader processes once a checkpoint of `step` or later is there."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        if any(int(path.stem[5:]) >= step for path in (folder / "checkpoints").glob("step_*.pt")):
            os.killpg(process.pid, number)
            return
        time.sleep(0.005)
    raise AssertionError(f"no checkpoint of step {step}; output: {process.communicate(timeout=10)[0]}")


def metrics(folder: Path, *names: str) -> list[dict]:
    """Lines of metrics.jsonl, reduced to `names` where given, without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    dropped = {"images_per_second", "memory_gib"}
    return [{key: line[key] for key in line if key not in dropped and (not names or key in names)} for line in lines]


def newest_state(folder: Path) -> dict:
    """The newest checkpoint of a run."""
    return torch.load(max((folder / "checkpoints").glob("step_*.pt")), weights_only=True)


def differences(first, second, place: str = "") -> list[str]:
    """Where two nested states are not the same bit for bit."""
    if isinstance(first, dict):
        if first.keys() != second.keys():
            return [f"{place}: other keys"]
        return [text for key in first for text in differences(first[key], second[key], f"{place}/{key}")]
    if isinstance(first, (list, tuple)):
        if len(first) != len(second):
            return [f"{place}: other length"]
        pairs = zip(first, second, strict=True)
        return [text for index, (a, b) in enumerate(pairs) for text in differences(a, b, f"{place}/{index}")]
    same = torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second
    return [] if same else [place]


def nan_in_one_image(image, target):
    """An augmentation that puts a NaN into every image without boxes."""
    from torchvision.transforms.v2 import functional as F

    pixels = F.to_dtype(F.pil_to_tensor(image), torch.float32, scale=True)
    if len(target["boxes"]) == 0:
        pixels[:, 0, 0] = float("nan")
    return pixels, target
