# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Reports of a run: a progress bar or log lines, metrics.jsonl and the trackers."""

import json
import math
import os
import socket
import sys
import time
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tqdm import tqdm

from sap_detr_cli.settings.train import TrainingSettings

from ..distributed import first_on_machine

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

METRICS_FILE = "metrics.jsonl"
# no drawn bar: the values need the space
BAR = "{percentage:3.0f}% {n_fmt}/{total_fmt} {elapsed}<{remaining}{postfix}"
SHORT_NAMES = {  # of the progress line
    "loss": "loss", "loss_ce": "class", "loss_bbox": "box", "loss_giou": "giou", "loss_ce_obj": "obj",
    "loss_inner": "inner", "loss_ce_dn": "class dn", "loss_bbox_dn": "box dn", "loss_giou_dn": "giou dn",
    "learning_rate": "rate", "gradient_norm": "grad", "images_per_second": "images/s", "memory_gib": "GiB",
}  # fmt: skip
PANELS = {  # of curves.png
    "loss": ["loss"],
    "loss parts of the last layer": ["loss_ce", "loss_bbox", "loss_giou", "loss_ce_obj"],
    "gradient norm and learning rate": ["gradient_norm", "learning_rate"],
    "validation": ["AP", "AP50", "AP75"],
}


class TrainingProgress:
    """Reports of the main process; on the others every method does nothing. Steps are the optimizer's."""

    def __init__(self, accelerator: Accelerator, settings: TrainingSettings, total_steps: int, steps_per_epoch: int):
        self.accelerator, self.settings = accelerator, settings
        self.total_steps, self.steps_per_epoch = total_steps, steps_per_epoch
        self.active = accelerator.is_main_process
        self.metrics_path = Path(settings.output_dir) / METRICS_FILE
        self.bar: tqdm | None = None
        self.last_line = 0.0

    def start(self, step: int, metrics_bytes: int):
        """Begin at `step`; lines of metrics.jsonl that a killed run wrote after its last checkpoint are cut off."""
        self.first_step, self.started = step, time.monotonic()
        if not self.active:
            return
        with open(self.metrics_path, "ab") as file:
            file.truncate(min(metrics_bytes, os.path.getsize(self.metrics_path)))
        if sys.stderr.isatty():
            self.bar = tqdm(total=self.total_steps, initial=step, dynamic_ncols=True, bar_format=BAR)

    def metrics_bytes(self) -> int:
        """Return the length of metrics.jsonl now, for the checkpoint."""
        return os.path.getsize(self.metrics_path) if self.active else 0

    def report_step(self, step: int, values: dict[str, float], seconds: float):
        """Take the values of optimizer step number `step` (from 1), which took `seconds`."""
        if not self.active:
            return
        shown = {
            **values,
            "images_per_second": self.settings.effective_batch / max(seconds, 1e-9),
            "memory_gib": memory_gib(self.accelerator.device),
        }
        if step % self.settings.log_steps == 0 or step == self.total_steps:
            self._write(step, shown)
        if self.bar is not None:
            self.bar.set_postfix_str(_short(shown), refresh=False)
            self.bar.update(1)
        elif time.monotonic() - self.last_line >= 1 or step == self.total_steps:
            self.last_line = time.monotonic()
            left = (self.last_line - self.started) / (step - self.first_step) * (self.total_steps - step)
            self.message(
                f"step {step}/{self.total_steps}  epoch {step / self.steps_per_epoch:.2f}  {_short(shown)}  "
                f"left {tqdm.format_interval(left)}"
            )

    def report_evaluation(self, step: int, values: dict[str, float]):
        """Take the validation numbers after optimizer step `step`."""
        if self.active:
            self._write(step, values)
            self.message(
                f"step {step}  validation  "
                + "  ".join(f"{key} {value:.4f}" for key, value in list(values.items())[:6])
            )

    def message(self, text: str):
        """Print a line above the bar or in the log, once on each machine, with its name where there are several."""
        if first_on_machine():
            several = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) < int(os.environ.get("WORLD_SIZE", "1"))
            text = f"{socket.gethostname()}: {text}" if several else text
            tqdm.write(text, file=sys.stderr) if self.bar is not None else print(text, file=sys.stderr, flush=True)

    def close(self):
        """End the bar."""
        if self.bar is not None:
            self.bar.close()

    def _write(self, step: int, values: dict[str, float]):
        line = {"step": step, "epoch": round(step / self.steps_per_epoch, 4), **values}
        with open(self.metrics_path, "a", encoding="utf-8") as file:
            # JSON has no NaN (an undefined AP) and no infinity (a gradient that fp16 skips): write null
            file.write(json.dumps({key: value if math.isfinite(value) else None for key, value in line.items()}) + "\n")
        self.accelerator.log(values, step=step)


def draw_curves(metrics: Path, picture: Path):
    """Draw a metrics.jsonl over optimizer steps (losses, rate, gradient norm, AP) as a PNG; nothing without lines."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        return
    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, names) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        for name in names:
            points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 60 else None)
        axes.set(title=title, xlabel="optimizer step")
        axes.set_yscale("linear" if title == "validation" else "log")
        if axes.lines:
            axes.legend()
    figure.savefig(picture, dpi=110)


def memory_gib(device: torch.device) -> float:
    """Return the largest memory so far: of the GPU where there is one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if resource is None:
        memory = psutil.Process().memory_info()
        return getattr(memory, "peak_wset", memory.rss) / 2**30
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kibibytes / (2**30 if sys.platform == "darwin" else 2**20)


def _short(values: dict[str, float]) -> str:
    return "  ".join(f"{short} {values[name]:.3g}" for name, short in SHORT_NAMES.items() if name in values)
