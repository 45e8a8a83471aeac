# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""All parts of one training run: built from the settings, saved and restored as one training state."""

import dataclasses
import sys
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    broadcast,
    gather_object,
    parse_flag_from_env,
    set_seed,
)
from torch.optim.swa_utils import AveragedModel
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from sap_detr_cli.settings.train import TrainingSettings

from ..data.augmentation import make_augmentation
from ..data.checks import category_conflicts, cheap_checks, check_validation, images_of_both
from ..data.classes import check_categories
from ..data.dataset import DetectionData, load_detection_data
from ..data.samples import DetectionRows
from ..distributed import all_processes_together, say
from ..evaluation.coco_metric import GroundTruth
from ..evaluation.evaluate import ground_truth
from .batches import ProcessBatchSampler, TrainingBatches
from .checkpoints import (
    CheckpointError,
    CheckpointFolder,
    make_folder,
    random_state,
    save_model_directory,
    write_atomically,
)
from .model import build_image_processor, build_model, compile_transformer, freeze_unreached, takes_num_boxes
from .optimization import average_weights, build_optimizer, build_scheduler
from .origin import describe_origin
from .reporting import TrainingProgress


@dataclass
class Progress:
    """Progress of a run. The epoch and the position in it follow from `step`, the number of optimizer steps done."""

    step: int = 0
    evaluated_step: int = 0
    best_ap: float = -1.0
    best_step: int = 0
    evaluations_since_best: int = 0
    metrics_bytes: int = 0


@dataclass
class TrainingRun:
    """All parts of a run, for [`sap_detr_hf.training.loop.train`]."""

    settings: TrainingSettings
    accelerator: Accelerator
    model: torch.nn.Module  # wrapped by Accelerate
    ema: AveragedModel | None
    optimizer: Any
    scheduler: torch.optim.lr_scheduler.LambdaLR
    image_processor: BaseImageProcessor
    batches: TrainingBatches
    validation: DetectionData | None
    truth: GroundTruth | None
    total_steps: int
    report: TrainingProgress
    checkpoints: CheckpointFolder
    progress: Progress
    origin: dict[str, Any]  # compared with the run's when a training state is resumed: see `describe_origin`

    @property
    def steps_per_epoch(self) -> int:
        """Return the optimizer steps per epoch."""
        return self.batches.sampler.steps_per_epoch

    @cached_property
    def takes_num_boxes(self) -> bool:
        """Whether the model's loss takes a normalizer, see [`takes_num_boxes`]."""
        return takes_num_boxes(self.plain_model)

    @cached_property
    def plain_model(self) -> PreTrainedModel:
        """Return the model without DDP's wrapper."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def evaluated_model(self) -> PreTrainedModel:
        """Return the model to evaluate and save: with the averaged weights, if `ema_decay` is set."""
        return self.ema.module if self.ema is not None else self.plain_model  # type: ignore[return-value]

    def share_batch_norm(self):
        """Give the first process's BatchNorm statistics to all; between steps each process has its own."""
        if self.accelerator.num_processes > 1:
            for buffer in (*self.evaluated_model.buffers(), *self.plain_model.buffers()):
                broadcast(buffer)

    def save_state(self) -> bool:
        """Write the training state; on failure, print a message and return False on all processes.

        All processes must call it: each contributes its random states.
        """
        state, saved = self._state(), True
        if self.accelerator.is_main_process:
            try:
                self.checkpoints.save(self.progress.step, state)
            except CheckpointError as error:
                saved = False
                self.report.message(f"Checkpoint of step {self.progress.step} not saved: {error}.")
        return all(gather_object([saved]))

    def save_model(self, folder: Path, model: PreTrainedModel):
        """Write a model directory (weights, configuration, image processor), on the main process only."""
        if self.accelerator.is_main_process:
            save_model_directory(folder, model, self.image_processor)

    def _state(self) -> dict[str, Any]:
        self.progress.metrics_bytes = self.report.metrics_bytes()
        scaler = self.accelerator.scaler
        return {
            "progress": dataclasses.asdict(self.progress),
            "origin": self.origin,
            "group_size": self.batches.sampler.group_size(self.progress.step // self.steps_per_epoch),
            "model": self.plain_model.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "random": gather_object([random_state()]),
        }


def prepare_run(settings: TrainingSettings, accelerator: Accelerator) -> TrainingRun:
    """Build all parts; errors in data, classes or settings are raised here, on all processes.

    Raises:
        ValueError: one sentence about what is wrong.
    """
    accumulation = settings.accumulation(accelerator.num_processes)
    with all_processes_together():
        training, validation = load_data(settings)
    set_seed(settings.seed)  # the same initial weights on all processes
    with all_processes_together():
        model = build_model(settings, training)
        image_processor = build_image_processor(settings)
    with all_processes_together():
        truth = check_data(accelerator, model, training, validation)
        batches = build_batches(settings, accelerator, model, image_processor, training, accumulation)
    steps_per_epoch = batches.sampler.steps_per_epoch
    total_steps = min(settings.epochs * steps_per_epoch, settings.max_steps or sys.maxsize)
    model.to(accelerator.device)
    freeze_unreached(model)
    origin = describe_origin(settings, training, model)
    ema = average_weights(model, settings.ema_decay) if settings.ema_decay else None
    if settings.compile:
        compile_transformer(model)
    optimizer = build_optimizer(model, settings)
    scheduler = build_scheduler(optimizer, settings, steps_per_epoch, total_steps)
    set_seed(settings.seed + accelerator.process_index)
    wrapped, prepared_optimizer = accelerator.prepare(model, optimizer)
    return TrainingRun(
        settings=settings,
        accelerator=accelerator,
        model=wrapped,
        ema=ema,
        optimizer=prepared_optimizer,
        scheduler=scheduler,
        image_processor=image_processor,
        batches=batches,
        validation=validation,
        truth=truth,
        total_steps=total_steps,
        report=TrainingProgress(accelerator, settings, total_steps, steps_per_epoch),
        checkpoints=CheckpointFolder(Path(settings.output_dir) / "checkpoints", settings.keep_checkpoints),
        progress=Progress(),
        origin=origin,
    )


def build_accelerator(settings: TrainingSettings) -> Accelerator:
    """Build Accelerate's `Accelerator`, with the settings' precision, tracker and time limit of the process group.

    Raises:
        ValueError: a tracker or precision that this machine does not have.
    """
    trackers = [str(tracker.value) for tracker in get_available_trackers()]
    if settings.tracker is not None and settings.tracker not in trackers:
        raise ValueError(f"`tracker` = {settings.tracker!r} is not installed here; there are: {', '.join(trackers)}.")
    accelerator = Accelerator(
        mixed_precision=settings.mixed_precision,
        log_with=settings.tracker,
        project_dir=settings.output_dir,
        kwargs_handlers=[
            # DDP need not broadcast buffers: most are constants, and `share_batch_norm` shares the others before use.
            DistributedDataParallelKwargs(broadcast_buffers=False),
            _time_limit(settings),
        ],
    )
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ValueError(
            f"The Accelerate configuration asks for {accelerator.distributed_type.value}, whose split states this "
            "program does not save: the model fits on every GPU, so use `distributed_type: MULTI_GPU`."
        )
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high" if settings.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = settings.tf32
        # On H100 and H200, cuDNN's masked attention can give NaN gradients (pytorch/pytorch issue 196678), and it
        # builds a new plan for each image size.
        torch.backends.cuda.enable_cudnn_sdp(False)
    return accelerator


def begin_process_group(settings: TrainingSettings) -> None:
    """Create the process group before the `Accelerator`, which then uses it: data checks already need it."""
    PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), **_time_limit(settings).to_kwargs())


def _time_limit(settings: TrainingSettings) -> InitProcessGroupKwargs:
    return InitProcessGroupKwargs(timeout=timedelta(minutes=settings.process_timeout))


def load_data(settings: TrainingSettings) -> tuple[DetectionData, DetectionData | None]:
    """Load the training data, and the validation data if AP is measured."""
    training = _load_split(settings, "train")
    if settings.overfit_batches:
        count = min(settings.overfit_batches * settings.effective_batch, len(training.dataset))
        training = dataclasses.replace(training, dataset=training.dataset.select(range(count)))
        return training, training
    if not (settings.evaluation_epochs or settings.evaluation_steps):
        return training, None
    return training, _load_split(settings, "val")


def _load_split(settings: TrainingSettings, prefix: Literal["train", "val"]) -> DetectionData:
    split, annotations, images = (getattr(settings, f"{prefix}_{name}") for name in ("split", "annotations", "images"))
    return load_detection_data(
        settings.data or annotations or "",
        split,
        annotations=annotations,
        images=images,
        categories=settings.categories,
        box_format=settings.box_format,
        cache_dir=settings.cache_dir,
    )


def check_data(
    accelerator: Accelerator,
    model: PreTrainedModel,
    training: DetectionData,
    validation: DetectionData | None,
) -> GroundTruth | None:
    """Make the cheap data checks, print their warnings and compare the classes.

    Returns:
        The ground truth of the validation data.
    """
    queries = getattr(model.config, "num_queries", None)
    warnings = []
    if accelerator.is_main_process:
        report = cheap_checks(training, queries)
        report.raise_on_errors()
        warnings = [f"{training.name}: {line}" for line in report.warning_lines()]
    check_categories(training, model.config)
    if validation is None:
        say_warnings(warnings)
        return None
    if conflicts := category_conflicts(training, validation):
        raise ValueError(f"{validation.source}: {conflicts[0]}: the same ids must mean the same in all splits.")
    found = check_validation(validation, accelerator.process_index, accelerator.num_processes)
    if validation is not training:
        warnings += [f"{validation.name}: {line}" for line in found]
        warnings += images_of_both(training, validation)
    say_warnings(warnings)
    return ground_truth(validation)


def say_warnings(warnings: list[str]):
    """Print what was found in the data; `sap-detr check-data` prints more of each."""
    for warning in warnings:
        say(f"warning: {warning}")


def build_batches(
    settings: TrainingSettings,
    accelerator: Accelerator,
    model: PreTrainedModel,
    image_processor: BaseImageProcessor,
    data: DetectionData,
    accumulation: int,
) -> TrainingBatches:
    """Build the loader of this process's share of every step."""
    sampler = ProcessBatchSampler(
        len(data.dataset),
        accumulation,
        accelerator.process_index,
        accelerator.num_processes,
        seed=settings.seed,
        images_per_device=settings.images_per_device,
        wide=np.asarray(data.dataset["width"][:]) >= np.asarray(data.dataset["height"][:]),
        group_size=settings.images_per_device if settings.group_by_aspect_ratio else 0,
        drop_last=settings.drop_last,
    )
    size: Any = image_processor.size  # type: ignore[attr-defined]
    epochs = min(settings.epochs, -(-(settings.max_steps or sys.maxsize) // sampler.steps_per_epoch))
    augmentation = make_augmentation(
        "none" if settings.overfit_batches else settings.augmentation,
        size["shortest_edge"],
        size["longest_edge"],
        strong_epochs=max(1, int(settings.strong_augmentation_until * epochs)),
        most_boxes=getattr(model.config, "num_queries", None),
    )
    rows = DetectionRows(
        data,
        image_processor,
        augmentation,
        category_ids=getattr(model.config, "category_ids", None),
        seed=settings.seed,
    )
    return TrainingBatches(rows, sampler, settings.workers, settings.pin_memory)


def prepare_output(settings: TrainingSettings):
    """Create the output folder with the run's settings.yaml.

    Raises:
        CheckpointError: the place does not allow it.
    """
    folder = Path(settings.output_dir)
    make_folder(folder)
    text = settings.to_yaml()
    write_atomically(folder / "settings.yaml", lambda aside: aside.write_text(text, encoding="utf-8"))
