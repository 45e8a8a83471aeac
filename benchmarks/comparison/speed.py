# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Seconds of a training step and of a forward pass of each compared detector, in turns in one run, and its size."""

import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.measure import environment, paired_seconds
from benchmarks.models import box_labels, image_batch, multiply_adds
from benchmarks.tasks import optimizer_step
from sap_detr_hf.evaluation.report import write_results

from .authors import trained_as_by_authors
from .models import build_detector, without_backbone

SPEED_FILE = "speed.json"
BOXES = 7
ROUNDS = 9


@trained_as_by_authors()
def measure_speed(names: Sequence[str], results: Path, settings: dict[str, Any], device: str) -> None:
    """Write `speed.json`: for each detector the median seconds of a step, and its size.

    Args:
        names: of the detectors; they take turns, so that a drift of the machine hits all alike.
        results: folder of the data set's results.
        settings: of the data set: its image size, batch, and what is frozen.
        device: "cpu" or "cuda".
    """
    height, width, batch = settings["shortest_edge"], settings["longest_edge"], settings["effective_batch"]
    pixels = image_batch(height, width, batch)["pixel_values"].to(device, memory_format=torch.channels_last)
    labels = [{key: value.to(device) for key, value in label.items()} for label in box_labels(batch, BOXES, 1)]
    classes = {"id2label": {0: "object"}, "label2id": {"object": 0}, "category_ids": [1]}
    steps, passes = [], []
    sizes: dict[str, dict[str, float]] = {}
    for name in names:
        model = build_detector(name, classes, 0)
        nn.Module.to(nn.Module.to(model, torch.device(device)), memory_format=torch.channels_last)
        sizes[name] = {"parameters_outside_backbone": without_backbone(model)}
        for parameter_name, parameter in model.named_parameters():
            parameter.requires_grad_(not parameter_name.startswith(tuple(settings["freeze"])))
        steps.append(optimizer_step(model.train(), {"pixel_values": pixels, "labels": labels}))
        evaluated = build_detector(name, classes, 0).eval()
        sizes[name]["multiply_adds"] = multiply_adds(partial(forward, evaluated, torch.zeros(1, 3, height, width)))
        nn.Module.to(evaluated, torch.device(device))
        passes.append(partial(forward, evaluated, pixels))
    seconds = paired_seconds([*steps, *passes], ROUNDS, device)
    medians = [statistics.median(times) for times in seconds]
    for name, step, single in zip(names, medians[: len(names)], medians[len(names) :], strict=True):
        sizes[name] |= {"seconds_per_step": step, "seconds_per_forward": single}
    content = {"height": height, "width": width, "batch": batch, "boxes": BOXES, "detectors": sizes}
    write_results(results / SPEED_FILE, {**content, **environment(device)})


def forward(model: Any, pixels: torch.Tensor) -> None:
    """Predict the batch."""
    with torch.no_grad():
        model(pixel_values=pixels)
