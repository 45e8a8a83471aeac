# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Find how many images fit in a forward and backward pass, by trying it before the run on all processes."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from transformers import AutoConfig, AutoModelForObjectDetection, PreTrainedConfig

from sap_detr_cli.settings.train import TrainingSettings

from ..data.dataset import DetectionData
from ..distributed import one_sentence, raise_together
from ..weights.pretrained import readable_model
from ..weights.variants import config_of_variant
from ..weights.warm_start_config import started_config
from .model import constant_label, prepare_to_train, takes_num_boxes

HEADROOM = 0.85  # share of a GPU's memory that the probe may use: the run also has averages, and fragments memory
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def largest_batch(attempt: Callable[[int], float], sizes: Sequence[int]) -> tuple[int, float] | None:
    """Find the largest batch that no process is out of memory with.

    Args:
        attempt: tries so many images and returns seconds; the same sequence of calls comes on all processes.
        sizes: to try, the largest first.

    Returns:
        The images, and the seconds of the slowest process; `None` if not even the last of `sizes` fits.

    Raises:
        RuntimeError: an attempt failed for another reason; on all processes.
    """
    for images in sizes:
        clear_device_cache(garbage_collection=True)
        seconds, failure = math.inf, None
        try:
            seconds = attempt(images)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                failure = one_sentence(error)
        raise_together(failure, RuntimeError)
        slowest = max(gather_object([seconds]))
        if slowest < math.inf:
            return images, slowest
    return None


def training_attempt(settings: TrainingSettings, data: DetectionData, boxes: int) -> Callable[[int], float]:
    """Build the settings' model, with random weights, and return a function for [`largest_batch`].

    It takes two optimizer steps on images of the largest size with so many `boxes` each, and returns the seconds of the
    second one.
    """
    device = PartialState().device
    model: Any = AutoModelForObjectDetection.from_config(_configuration(settings, data))
    prepare_to_train(model, settings).to(device)
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.0)
    dtype = DTYPES.get(settings.mixed_precision)
    height, width = settings.shortest_edge, settings.longest_edge
    assert height is not None
    assert width is not None

    def step(images: int) -> float:
        labels = [constant_label(boxes, device)] * images
        arguments: dict[str, Any] = {"num_boxes": float(images * boxes)} if takes_num_boxes(model) else {}
        pixels = torch.zeros(images, 3, height, width, device=device)
        mask = torch.ones(images, height, width, dtype=torch.long, device=device)
        started = time.perf_counter()
        with nullcontext() if dtype is None else torch.autocast(device.type, dtype):
            loss = model(pixel_values=pixels, pixel_mask=mask, labels=labels, **arguments).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    def attempt(images: int) -> float:
        with _headroom(device):
            try:
                step(images)
                return step(images)
            finally:
                optimizer.zero_grad()

    return attempt


def _configuration(settings: TrainingSettings, data: DetectionData) -> PreTrainedConfig:
    fields = {"id2label": data.id2label, **settings.model_overrides}
    if settings.variant:
        return config_of_variant(settings.variant, **fields)
    if settings.init_from:
        return started_config(settings.init_from, **fields)
    assert settings.model
    with readable_model(settings.model):
        return AutoConfig.from_pretrained(settings.model, **fields)


@contextmanager
def _headroom(device: torch.device):
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_per_process_memory_fraction(HEADROOM, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
