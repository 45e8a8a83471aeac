"""Measure whether the data loader keeps up with the model: images per second of each alone."""

import statistics
import time
from contextlib import closing
from typing import Any

import torch

from sap_detr_cli.settings.train import TrainingSettings

from ..distributed import end_processes
from ..environment import hardware_name, software_versions
from .loop import take_step
from .own_data import with_choices
from .run import TrainingRun, build_accelerator, prepare_run

DEFAULT_STEPS = 5
LOADER_STEPS = 50  # loading is quick: fewer would measure chance


def measure_throughput(settings: TrainingSettings) -> dict[str, Any]:
    """Load batches without training on them, then train on batches that are loaded; nothing is written.

    Args:
        settings: of the run; `max_steps` counts training steps (5 by default), after one that is not timed.

    Returns:
        `loader_images_per_second`, `training_images_per_second` (both of this process), `loader_over_training`,
        `images_per_step`, `steps`, `workers`, `hardware`, `versions` (of the packages, by name).

    Raises:
        ValueError: settings or data that cannot work.
    """
    result = _measure(settings)
    end_processes()
    return result


def _measure(settings: TrainingSettings) -> dict[str, Any]:
    settings = with_choices(settings)
    run = prepare_run(settings, build_accelerator(settings))
    steps = settings.max_steps or DEFAULT_STEPS
    images = settings.images_per_device * run.batches.sampler.accumulation
    batches = run.batches.from_step(0)
    with closing(run.batches), closing(batches):
        kept = [next(batches)]  # starts the loader processes
        # They have loaded ahead meanwhile, which a measurement must not count.
        for _ in range(2 * settings.workers // run.batches.sampler.accumulation):
            next(batches)
        started = time.perf_counter()
        for number in range(LOADER_STEPS):
            loaded = next(batches)
            kept += [loaded] if number < steps else []
        loading = (time.perf_counter() - started) / LOADER_STEPS
    training = _seconds_of_a_step(run, kept)
    return {
        "loader_images_per_second": images / loading,
        "training_images_per_second": images / training,
        "loader_over_training": training / loading,
        "images_per_step": images,
        "steps": steps,
        "workers": settings.workers,
        "hardware": hardware_name(run.accelerator.device),
        "versions": software_versions(),
    }


def _seconds_of_a_step(run: TrainingRun, batches: list[list[dict]]) -> float:
    seconds = []
    for loaded in batches:
        started = time.perf_counter()
        boxes = sum(len(label["class_labels"]) for batch in loaded for label in batch["labels"])
        take_step(run, loaded, float(boxes))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])  # of which some may compile for a size of images that is new
