# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""The training loop: one process or many, resumable at every step."""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate.utils import gather_object, send_to_device
from transformers.utils.logging import disable_progress_bar

from sap_detr_cli.settings.train import TrainingSettings

from ..distributed import (
    all_processes_together,
    connection_error,
    end_processes,
    machines,
    one_sentence,
    raise_together,
    this_process,
)
from ..evaluation.evaluate import evaluate_detections
from .batch_probe import DTYPES
from .failure import TrainingFailed, first_bad_tensor
from .own_data import with_choices
from .reporting import METRICS_FILE, draw_curves
from .resume import resume
from .run import TrainingRun, build_accelerator, prepare_output, prepare_run


def train(settings: TrainingSettings) -> dict[str, float | str]:
    """Train a model and leave it in `settings.output_dir`, from where `from_pretrained` loads it.

    The folder receives the best weights by AP (the last ones without evaluation), the last weights in `last/`, the
    training states in `checkpoints/`, `settings.yaml`, `metrics.jsonl` and `curves.png`.

    Returns:
        `status` ("finished", "stopped early" or "interrupted"), `step`, `best_ap` and `best_step`.

    Raises:
        ValueError: settings or data that cannot work, on all processes, before the first step.
        TrainingFailed: a loss that is not finite or an unreadable image, on all processes; or another process that
            died or did not answer. The last good checkpoint stays.
    """
    try:
        result = run_training(settings)
        end_processes()  # only now: the process group must outlive the last reference to the run
    except RuntimeError as error:
        if connection_error(error) is None:
            raise
        raise TrainingFailed(
            f"Training stopped: {this_process()} lost another process, which was killed, failed or did not answer "
            f"within `process_timeout` = {settings.process_timeout:g} minutes ({connection_error(error)}). Start "
            "all of them again with `--resume auto`."
        ) from error
    return result


def run_training(settings: TrainingSettings) -> dict[str, float | str]:
    """Train as [`train`] does, without leaving the process group."""
    disable_progress_bar()  # transformers' own bars for single files
    run = start_run(settings)
    batches = run.batches.from_step(run.progress.step)
    with stop_signals() as stop, closing(run.batches), closing(batches):
        evaluate_if_due(run, stop)  # finish an evaluation that a kill interrupted
        while goes_on(run):
            started = time.monotonic()
            loaded, boxes, stopping = load_step(run, batches, stop)
            if stopping:
                return interrupt(run)
            values = take_step(run, loaded, boxes)
            run.report.report_step(run.progress.step, values, time.monotonic() - started)
            if checkpoint_due(run):
                run.save_state()
            evaluate_if_due(run, stop)
    return interrupt(run) if evaluation_due(run) else finish(run)  # due: a signal ended the last evaluation


def start_run(settings: TrainingSettings) -> TrainingRun:
    """Build the run, put its saved state back, and only then write: a refused run leaves an earlier one as it is."""
    settings = with_choices(settings)
    accelerator = build_accelerator(settings)
    run = prepare_run(settings, accelerator)
    resume(run)
    with all_processes_together():
        if accelerator.is_main_process:
            prepare_output(settings)
    accelerator.init_trackers(settings.run_name, config={name: str(value) for name, value in asdict(settings).items()})
    run.report.start(run.progress.step, run.progress.metrics_bytes)
    if accelerator.num_processes > 1:
        run.report.message(
            f"{accelerator.num_processes} processes on {', '.join(machines())}. The run ends if one of them does not "
            f"answer within `process_timeout` = {settings.process_timeout:g} minutes."
        )
    return run


def goes_on(run: TrainingRun) -> bool:
    """Whether there is another step to take."""
    return run.progress.step < run.total_steps and not stops_early(run)


def stops_early(run: TrainingRun) -> bool:
    """Whether AP has not grown for as many evaluations as the settings allow."""
    patience = run.settings.early_stopping
    return patience is not None and run.progress.evaluations_since_best >= patience


def load_step(run: TrainingRun, batches: Iterator[list[dict]], stop: list[int]) -> tuple[list[dict], float, bool]:
    """Load this process's batches of the next step.

    Returns:
        The batches; the boxes in those of all processes; whether some process received a stop signal.

    Raises:
        TrainingFailed: some process cannot load its images; on all processes.
    """
    loaded, failure = [], None
    try:
        loaded = next(batches)
    except (OSError, ValueError, RuntimeError) as error:
        failure = f"Training stopped after step {run.progress.step}: {one_sentence(error)}"
    boxes = sum(len(label["class_labels"]) for batch in loaded for label in batch["labels"])
    total_boxes, stops, failures = sum_over_processes(run, [boxes, bool(stop), failure is not None])
    if failures:
        raise_together(failure, TrainingFailed)
    return loaded, total_boxes, stops > 0


def sum_over_processes(run: TrainingRun, counts: list[int]) -> list[float]:
    """Add up each count; a process that is alone does not wait for its GPU."""
    if run.accelerator.num_processes == 1:
        return [float(count) for count in counts]
    here = torch.tensor(counts, dtype=torch.float32, device=run.accelerator.device)
    return run.accelerator.reduce(here, "sum").tolist()


def take_step(run: TrainingRun, batches: list[dict], total_boxes: float) -> dict[str, float]:
    """Take one optimizer step over all batches of all processes; return the values to report.

    Every loss is a sum over boxes or queries divided by the boxes of the *whole* step: processes average their
    gradients, so each divides by total / processes, and accumulated gradients simply add up.

    Raises:
        TrainingFailed: loss or gradient is not finite on some process; on all processes, before the weights change.
    """
    accelerator = run.accelerator
    divisor = torch.full((), max(total_boxes / accelerator.num_processes, 1.0), device=accelerator.device)
    arguments = {"num_boxes": divisor} if run.takes_num_boxes else {}
    batches = [send_to_device(batch, accelerator.device, non_blocking=True) for batch in batches]
    sums = accumulate_gradients(run, batches, arguments)
    norm = accelerator.clip_grad_norm_(run.model.parameters(), run.settings.gradient_clip or math.inf)
    values = agree_on_values(run, sums, norm, batches, arguments)
    values["learning_rate"] = float(run.scheduler.get_last_lr()[0])
    update_weights(run)
    return values


def accumulate_gradients(run: TrainingRun, batches: list[dict], arguments: dict) -> dict[str, torch.Tensor]:
    """Run the forward and backward passes of one step; return this process's losses by name, summed over batches."""
    sums: dict[str, torch.Tensor] = {}
    for number, batch in enumerate(batches, start=1):
        with nullcontext() if number == len(batches) else run.accelerator.no_sync(run.model):
            outputs = run.model(**batch, **arguments)
            run.accelerator.backward(outputs.loss if run.takes_num_boxes else outputs.loss / len(batches))
        for name, value in {"loss": outputs.loss, **outputs.loss_dict}.items():
            sums[name] = sums.get(name, 0) + value.detach().float()
    return sums


def agree_on_values(
    run: TrainingRun, sums: dict[str, torch.Tensor], norm: torch.Tensor, batches: list[dict], arguments: dict
) -> dict[str, float]:
    """Average the step's values over all processes, in one reduction that also says whether any is not finite."""
    scaled = run.accelerator.scaler is not None  # the scaler itself skips steps with infinite gradients
    bad_loss = ~sums["loss"].isfinite()
    bad = bad_loss if scaled else bad_loss | ~norm.isfinite()
    packed = torch.stack([bad.float(), *sums.values(), norm.float()]) / run.accelerator.num_processes
    any_bad, *means = run.accelerator.reduce(packed, "sum").tolist()
    if any_bad:
        raise TrainingFailed(explain_failure(run, bool(bad), batches, arguments))
    values = dict(zip([*sums, "gradient_norm"], means, strict=True))
    if not run.takes_num_boxes:
        values = {name: value / (1 if name == "gradient_norm" else len(batches)) for name, value in values.items()}
    elif "class_error" in values:
        values["class_error"] /= len(batches)  # a percentage; all other values are sums over boxes
    return values


def explain_failure(run: TrainingRun, bad_here: bool, batches: list[dict], arguments: dict) -> str:
    """Say on all processes where the loss or gradient of each stops being finite, and which checkpoint is good."""
    finding = None
    # Without a normalizer, the loss would sum its boxes over all processes and hang: only some get here.
    with_loss = run.takes_num_boxes or run.accelerator.num_processes == 1
    for batch in batches if bad_here else []:
        name = first_bad_tensor(run.plain_model, batch, with_loss=with_loss, **arguments)
        images = ", ".join(str(int(label["image_id"])) for label in batch["labels"])
        finding = f"{this_process()}, images {images}: {name}"
        if not name.startswith("not found"):
            break
    findings = "; ".join(text for text in gather_object([finding]) if text)
    saved = run.checkpoints.files()
    return (
        f"Training stopped in step {run.progress.step + 1}: the loss or its gradient is not finite. First bad tensor "
        f"of {findings}. "
        + (f"The last good checkpoint is {saved[-1]}." if saved else "No checkpoint had been saved yet.")
    )


def update_weights(run: TrainingRun):
    """Step the optimizer, the learning rate and the weights' average."""
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.scheduler.step()
    if run.ema is not None:
        run.ema.update_parameters(run.plain_model)
    run.progress.step += 1


def checkpoint_due(run: TrainingRun) -> bool:
    """Whether to save the state after the step just taken: as set, before evaluations and at the end."""
    settings, step = run.settings, run.progress.step
    by_epoch = _every(step, settings.checkpoint_epochs * run.steps_per_epoch)
    return by_epoch or _every(step, settings.checkpoint_steps) or evaluation_due(run) or step == run.total_steps


def evaluation_due(run: TrainingRun) -> bool:
    """Whether to measure AP after the step just taken: as set and at the end."""
    settings, step = run.settings, run.progress.step
    if run.validation is None or step == run.progress.evaluated_step:
        return False
    by_epoch = _every(step, settings.evaluation_epochs * run.steps_per_epoch)
    return by_epoch or _every(step, settings.evaluation_steps) or step == run.total_steps


def _every(step: int, period: int | None) -> bool:
    return period is not None and period > 0 and step % period == 0


def evaluate_if_due(run: TrainingRun, stop: list[int]):
    """Measure AP on the validation images and save the model if it is the best so far."""
    if not evaluation_due(run):
        return
    try:
        values = evaluate(run)
    except RuntimeError:
        if not stop:
            raise
        return  # the signal also ended the evaluation's loader processes; a resumed run evaluates again
    run.progress.evaluated_step = run.progress.step
    run.report.report_evaluation(run.progress.step, values)
    compare_with_best(run, values["AP"])
    if not goes_on(run):
        run.save_state()  # includes the evaluation, so that a finished run does not repeat it when resumed


def evaluate(run: TrainingRun) -> dict[str, float]:
    """Measure the 12 COCO numbers of the averaged weights, or of the weights where there is no average."""
    assert run.validation is not None
    assert run.truth is not None
    run.share_batch_norm()
    evaluation = evaluate_detections(
        run.evaluated_model,
        run.validation.dataset,
        run.image_processor,
        run.truth,
        accelerator=run.accelerator,
        batch_size=run.settings.evaluation_batch_size,
        num_workers=run.settings.workers,
        autocast_dtype=DTYPES.get(run.settings.mixed_precision),
        progress=run.report.bar is not None,
    )
    return evaluation.metrics


def compare_with_best(run: TrainingRun, ap: float):
    """Count evaluations without a better AP; write the best weights to the output folder, or report a full disk."""
    progress = run.progress
    if ap > progress.best_ap:
        progress.evaluations_since_best = 0
    elif progress.step > run.settings.warmup_steps:  # during warm-up, AP says nothing
        progress.evaluations_since_best += 1
    if ap >= progress.best_ap:  # >=: of equal APs, such as 0 at the start, keep the latest
        progress.best_ap, progress.best_step = ap, progress.step
        try:
            run.save_model(Path(run.settings.output_dir), run.evaluated_model)
        except OSError as error:
            run.report.message(f"Best model of step {progress.step} not saved: {error}.")


def interrupt(run: TrainingRun) -> dict[str, float | str]:
    """Save the state after a stop signal, which all processes learned of at the same step."""
    if not run.save_state():
        raise TrainingFailed("Training was interrupted and its state could not be saved.")
    run.report.message(
        f"Stopped by a signal after step {run.progress.step}, state saved: continue with `--resume auto`."
    )
    return close(run, "interrupted")


def finish(run: TrainingRun) -> dict[str, float | str]:
    """Save the last weights, and a model in the output folder even where AP was never measured."""
    output = Path(run.settings.output_dir)
    with all_processes_together():
        if run.accelerator.is_main_process:
            run.save_model(output / "last", run.evaluated_model)
            if run.progress.best_step == 0:
                run.save_model(output, run.evaluated_model)
            draw_curves(output / METRICS_FILE, output / "curves.png")
    return close(run, "stopped early" if stops_early(run) else "finished")


def close(run: TrainingRun, status: str) -> dict[str, float | str]:
    """End reports and trackers."""
    run.report.close()
    for tracker in run.accelerator.trackers:
        tracker.finish()
    progress = run.progress
    return {"status": status, "step": progress.step, "best_ap": progress.best_ap, "best_step": progress.best_step}


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGTERM and Ctrl-C instead of dying in the middle of a step; a second Ctrl-C acts as usual.

    Further SIGTERMs change nothing: a launcher passes on what the whole process group has received already.
    """
    received: list[int] = []

    def receive(number, frame):
        received.append(number)
        if number == signal.SIGINT:
            signal.signal(number, before[number])

    before = {number: signal.signal(number, receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
