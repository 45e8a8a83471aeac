# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Choose the images of each step. The choice depends only on seed and step, not on the number of processes."""

import atexit
import os
import signal
from collections.abc import Generator, Iterator
from functools import partial

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from ..data.samples import DetectionRows, collate


def epoch_batches(
    images: int,
    *,
    seed: int,
    epoch: int,
    images_per_device: int,
    batches_per_step: int,
    wide: np.ndarray | None = None,
    group_size: int = 0,
    drop_last: bool = False,
) -> torch.Tensor:
    """Order the images of one epoch in batches, (steps, batches_per_step, images_per_device) indices of images.

    An optimizer step consists of `batches_per_step` = processes x accumulation batches. Every image comes once; an
    incomplete last step is dropped or filled with the epoch's first batches, so that all processes always have equally
    many full batches and none waits for another.

    Args:
        wide: (images,) bool; batches then hold only wide or only tall images, but for one batch of the remainders.
        group_size: images of one orientation in a row; 0: do not group. The order depends on this number, not on the
            sizes of the batches.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(images, generator=generator)
    if wide is not None and group_size:
        order = _grouped(order, torch.from_numpy(wide), group_size, generator)
    images_per_step = images_per_device * batches_per_step
    steps = images // images_per_step if drop_last else -(-images // images_per_step)
    repeats = -(-steps * images_per_step // images)
    return order.repeat(repeats)[: steps * images_per_step].view(steps, batches_per_step, images_per_device)


def _grouped(order: torch.Tensor, wide: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    groups = [order[wide[order]], order[~wide[order]]]
    full = torch.cat([group[: len(group) // size * size].view(-1, size) for group in groups])
    left_over = torch.cat([group[len(group) // size * size :] for group in groups])
    return torch.cat([full[torch.randperm(len(full), generator=generator)].flatten(), left_over])


class ProcessBatchSampler(Sampler[list[int]]):
    """One process's batches of an epoch, from any step on: batch m of process p is batch m * processes + p of the step.

    Args:
        accumulation: batches of one process per optimizer step.
        order: the other arguments of [`epoch_batches`].
    """

    def __init__(self, images: int, accumulation: int, process: int, processes: int, **order):
        self.images, self.accumulation, self.process, self.processes = images, accumulation, process, processes
        self.order = {**order, "batches_per_step": processes * accumulation}
        images_per_step = order["images_per_device"] * processes * accumulation
        exact = order.get("drop_last", False)
        self.steps_per_epoch = images // images_per_step if exact else -(-images // images_per_step)
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"{images} training images are fewer than one effective batch of {images_per_step}: "
                "set `drop_last` to false or a smaller `effective_batch`."
            )
        self.begun: dict[int, int] = {}
        self.start(0, 0)

    def start(self, epoch: int, step: int):
        """Make the next iteration begin at `step` of `epoch`."""
        self.epoch, self.first_step = epoch, step

    def group_size(self, epoch: int) -> int:
        """Return the `group_size` that orders an epoch, 0 where its images are not grouped."""
        return self.begun.get(epoch, self.order.get("group_size", 0))

    def go_on_with_epoch(self, epoch: int, group_size: int):
        """Order an epoch as the run that began it did, so that each of its images still comes once."""
        self.begun = {epoch: group_size}

    def __iter__(self) -> Iterator[list[int]]:
        order = {**self.order, "group_size": self.group_size(self.epoch)}
        batches = epoch_batches(self.images, epoch=self.epoch, **order)
        own = batches[self.first_step :, self.process :: self.processes]  # (steps, accumulation, images_per_device)
        yield from own.flatten(0, 1).tolist()

    def __len__(self) -> int:
        return (self.steps_per_epoch - self.first_step) * self.accumulation


class TrainingBatches:
    """The loader of one process: lists of `accumulation` batches, one list per optimizer step."""

    def __init__(self, rows: DetectionRows, sampler: ProcessBatchSampler, workers: int, pin_memory: bool):
        self.rows, self.sampler = rows, sampler
        self.closing = torch.zeros((), dtype=torch.bool).share_memory_()
        atexit.register(self.closing.fill_, True)
        # A generator of its own: the loader would otherwise draw from the global one at each start, and a resumed run,
        # which starts it once more, would differ from an uninterrupted one.
        self.loader: DataLoader = DataLoader(
            rows,
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=pin_memory and torch.cuda.is_available(),
            persistent_workers=workers > 0,
            worker_init_fn=partial(outlive_signals, self.closing),
            generator=torch.Generator().manual_seed(0),
        )

    def from_step(self, step: int) -> Generator[list[dict], None, None]:
        """Load the batches of optimizer step `step`, `step` + 1, ... without end."""
        while True:
            epoch, first = divmod(step, self.sampler.steps_per_epoch)
            self.rows.set_epoch(epoch)
            self.sampler.start(epoch, first)
            batches = iter(self.loader)
            for _ in range(first, self.sampler.steps_per_epoch):
                yield [next(batches) for _ in range(self.sampler.accumulation)]
            step = (epoch + 1) * self.sampler.steps_per_epoch

    def close(self):
        """End the loader processes."""
        self.closing.fill_(True)
        del self.loader


def outlive_signals(closing: torch.Tensor, worker: int):
    """Let a loader process ignore stop signals to the whole process group: the training process answers by saving.

    Args:
        closing: shared flag; once it is set, the signal that the training process itself sends at its end is obeyed.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0) if bool(closing) else None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
