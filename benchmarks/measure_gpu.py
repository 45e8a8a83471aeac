"""Measure what only a GPU can show: seven steps, the most valuable first, in six minutes on an H100 or H200.

    python -m benchmarks.measure_gpu --output benchmarks/results

Each step runs in a process of its own with a time limit and writes `gpu_STEP.json` as its results come; `gpu.md` sums
up and says which targets are met. A step that fails or takes too long does not stop the others. `--dry-run` runs the
same code on a CPU in toy size (`dry_run_STEP.json`), to find mistakes where no GPU is.
"""

import argparse
import json
import multiprocessing
import os
import shlex
import signal
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from sap_detr_cli.main import fail

LIMITS = {
    "tests": 100,
    "demo": 90,
    "synchronization": 45,
    "forward": 130,
    "training": 70,
    "gaussian": 60,
    "kernel": 30,
}
"""Seconds that each step may take, in the order in which they run."""
LOG_LINES = 40


def main(argv: list[str] | None = None) -> int:
    """Run the steps and print the summary; 0 if all ran to their end, 1 if not, 2 without a GPU."""
    argv = sys.argv[1:] if argv is None else argv
    args = _parser().parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    from .gpu_report import report

    if not args.dry_run and not torch.cuda.is_available():
        return fail("PyTorch finds no CUDA device: `--dry-run` runs all steps on the CPU", 2)
    args.output.mkdir(parents=True, exist_ok=True)
    prefix = "dry_run" if args.dry_run else "gpu"
    command = shlex.join(["python", "-m", "benchmarks.measure_gpu", *argv])
    deadline, results = time.monotonic() + args.seconds, []
    for name in args.steps:
        path = args.output / f"{prefix}_{name}.json"
        path.unlink(missing_ok=True)
        limit = min(LIMITS[name], deadline - time.monotonic())
        results.append(run_in_process(name, path, limit, command, args.dry_run))
        print(f"{name}: {results[-1]['status']}, {results[-1]['seconds']:.0f} s", flush=True)
        (args.output / f"{prefix}.md").write_text(report(results), encoding="utf-8")
    print(f"\n{report(results)}", end="")
    return 0 if all(result["status"] == "done" for result in results) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument(
        "--steps", nargs="+", choices=list(LIMITS), default=list(LIMITS), help="some only; default: all"
    )
    parser.add_argument("--seconds", type=float, default=360, help="for all steps together (360)")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, in toy size")
    return parser


def run_in_process(name: str, path: Path, limit: float, command: str, dry_run: bool) -> dict[str, Any]:
    """Run a step for at most `limit` seconds; returns the content of the file that it leaves.

    `status` is "done", "failed", "timed out" or, without time, "left out"; `result` is what came before that, and
    `log` the last lines of a step that was not done.
    """
    started, status, log = time.monotonic(), "left out", ""
    if limit > 0:
        # A fork saves importing everything for each step, but what a GPU's driver holds does not survive it.
        context: Any = multiprocessing.get_context("forkserver" if dry_run else "spawn")
        if dry_run:
            context.set_forkserver_preload(["benchmarks.gpu_steps", "sap_detr_hf.cli.train"])
        with tempfile.TemporaryDirectory() as temporary:
            output = Path(temporary) / "log"
            process = context.Process(target=run_step, args=(name, path, output, dry_run))
            process.start()
            process.join(limit)
            status = "timed out" if process.is_alive() else "done" if process.exitcode == 0 else "failed"
            _end(process)
            log = output.read_text(errors="replace") if output.exists() else ""
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"step": name, "result": {}}
    content |= {"command": command, "status": status, "seconds": time.monotonic() - started}
    if status != "done":
        content["log"] = log.splitlines()[-LOG_LINES:]
    write_json(path, content)
    return content


def run_step(name: str, path: Path, log: Path, dry_run: bool) -> None:
    """Run a step in this process, its output in `log`, and write its results so far whenever there are new ones."""
    os.setsid()  # with all processes that it starts
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    import torch

    from .gpu_steps import DRY_RUN, STEPS, Size
    from .measure import environment

    size = Size()
    if dry_run:
        size = DRY_RUN
        torch.nn.Module.compile = lambda *_, **__: None  # type: ignore[method-assign] # minutes, without a GPU
    content = {"step": name, **environment(size.device)}
    for result in STEPS[name](size):
        write_json(path, {**content, "result": result})


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace the file in one go: a step may be ended while it writes."""
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def _end(process: BaseProcess) -> None:
    """End the step's process and all that it started."""
    assert process.pid is not None
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # nothing is left, or it has not begun
        process.kill()
    process.join()


if __name__ == "__main__":
    sys.exit(main())
