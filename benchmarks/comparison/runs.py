# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""One training of the comparison: a detector, a learning rate, a length and a seed, in a process of its own."""

import functools
import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from timm.models.efficientnet import EfficientNetFeatures

from sap_detr_cli.settings.train import TrainingSettings
from sap_detr_hf.data.dataset import DetectionData
from sap_detr_hf.environment import hardware_name, software_versions
from sap_detr_hf.evaluation.report import write_results
from sap_detr_hf.training.checkpoints import save_model_directory
from sap_detr_hf.training.loop import train
from sap_detr_hf.training.model import build_image_processor
from sap_detr_hf.training.reporting import METRICS_FILE
from sap_detr_hf.training.run import load_data

from .authors import trained_as_by_authors
from .models import DETECTORS, build_detector

STOP_SECONDS = 300  # for a training that was told to stop to save its state
CURVES = ("AP", "AP50", "AP_small", "AP_medium", "AP_large")


@dataclass(frozen=True)
class Run:
    """One training."""

    detector: str
    rate: float
    seed: int
    epochs: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.detector}/epochs_{self.epochs}_rate_{self.rate:g}_seed_{self.seed}"


def finished_runs(results: Path) -> dict[Run, dict[str, Any]]:
    """The results of all runs that have ended: `results/runs` holds a file for each detector."""
    found = {}
    for path in sorted((results / "runs").glob("*.json")):
        for result in json.loads(path.read_text(encoding="utf-8"))["runs"]:
            found[Run(path.stem, result["rate"], result["seed"], result["epochs"])] = result
    return found


def add_result(results: Path, run: Run, result: dict[str, Any]) -> None:
    """Write the result of a run into its detector's file."""
    path = results / "runs" / f"{run.detector}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []
    write_results(path, {"runs": [*runs, result]})


def run_until(settings: dict[str, Any], work: Path, results: Path, run: Run, deadline: float) -> bool:
    """Train in a process of its own; return whether it ended before the deadline.

    Args:
        settings: of the data set, with `data`.
        work: receives the folder of the run, from where it goes on when it is started again.
        results: receives its result.
        deadline: in the time of `time.monotonic`.

    Raises:
        RuntimeError: the training failed; its own message stands above.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        return False
    print(run.name, file=sys.stderr, flush=True)
    process = multiprocessing.get_context("spawn").Process(target=train_one, args=(settings, work, results, run))
    process.start()
    process.join(left)
    if process.is_alive():
        process.terminate()  # the training loop saves its state
        process.join(STOP_SECONDS)
    if run in finished_runs(results):
        return True
    if process.exitcode not in (0, -15):
        raise RuntimeError(f"The training in {work / run.name} failed (exit code {process.exitcode}).")
    return False


def train_one(settings: dict[str, Any], work: Path, results: Path, run: Run) -> None:
    """Train, and write the result if the run was not interrupted."""
    folder = work / run.name
    detector = DETECTORS[run.detector]
    values = {**settings, **detector.settings, "epochs": run.epochs, "seed": run.seed, "learning_rate": run.rate}
    values["resume"] = "auto"
    training = TrainingSettings(**values, model=str(folder / "start"), output_dir=str(folder))
    data, _ = load_data(training)
    write_start(training, data, run, trained_on_digits(work.parent, detector.source) if detector.source else None)
    repeated = "model.backbone" in training.freeze and not training.augmentation.startswith("strong")
    with trained_as_by_authors(), remembered_features() if repeated else nullcontext():
        status = train(training)["status"]
    if status != "interrupted":
        add_result(results, run, result_of(training, run))


def trained_on_digits(work: Path, detector: str) -> str:
    """The folder of a detector that was trained on the digits in full length, with seed 0.

    Raises:
        ValueError: there is none; says how to get it.
    """
    runs = [path.parent for path in (work / "digits" / detector).glob("epochs_*_seed_0/config.json")]
    if not runs:
        raise ValueError(f"Train {detector} on the digits first, with the same --work: compare_models digits.")
    return str(max(runs, key=lambda folder: int(folder.name.split("_")[1])))


def write_start(training: TrainingSettings, data: DetectionData, run: Run, source: str | None) -> None:
    """Save the untrained detector that the run starts from."""
    start = Path(str(training.model))
    if (start / "preprocessor_config.json").exists():  # its last file
        return
    classes: dict[str, Any] = {"id2label": data.id2label, "category_ids": data.category_ids}
    classes["label2id"] = {name: index for index, name in data.id2label.items()}
    sizes: dict[str, Any] = {"shortest_edge": training.shortest_edge, "longest_edge": training.longest_edge}
    processor = build_image_processor(TrainingSettings(variant="r50", data=training.data, **sizes))
    save_model_directory(start, build_detector(run.detector, classes, run.seed, source), processor)


def result_of(training: TrainingSettings, run: Run) -> dict[str, Any]:
    """What a finished run gave and where, with its settings."""
    folder = Path(training.output_dir)
    lines = [json.loads(line) for line in (folder / METRICS_FILE).read_text(encoding="utf-8").splitlines()]
    own = {"model", "output_dir", "data", "learning_rate", "seed", "epochs", "resume", "cache_dir"}
    return {
        **{name: value for name, value in asdict(run).items() if name != "detector"},
        "curve": [{key: line.get(key) for key in ("epoch", "step", *CURVES)} for line in lines if "AP" in line],
        "memory_gib": max((line["memory_gib"] for line in lines if "memory_gib" in line), default=None),
        "settings": {name: value for name, value in asdict(training).items() if name not in own},
        "hardware": hardware_name(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "threads": torch.get_num_threads(),
        "versions": software_versions(),
    }


@contextmanager
def remembered_features() -> Iterator[None]:
    """Compute the frozen backbone once for each picture, and flipped picture, of a run.

    The features of a picture are taken alone, so that they do not depend on its batch. Speed is therefore measured
    apart, with the whole detector.
    """
    forward = EfficientNetFeatures.forward
    EfficientNetFeatures.forward = _remembering(forward)  # type: ignore[method-assign]
    try:
        yield
    finally:
        EfficientNetFeatures.forward = forward  # type: ignore[method-assign]


def _remembering(forward: Callable) -> Callable:
    known: dict[bytes, list[torch.Tensor]] = {}

    @functools.wraps(forward)
    def remembering(network, pixels: torch.Tensor) -> list[torch.Tensor]:  # (B, 3, H, W)
        features = []
        for picture in pixels:
            key = hashlib.blake2b(picture.contiguous().cpu().numpy().tobytes(), digest_size=16).digest()
            if key not in known:
                known[key] = [level.detach() for level in forward(network, picture[None])]  # (1, C, h, w) each
            features.append(known[key])
        return [torch.cat(levels) for levels in zip(*features, strict=True)]  # (B, C, h, w) each

    return remembering


def use_one_thread() -> None:
    """Give each training one core, so that two may run at once with equal results."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
