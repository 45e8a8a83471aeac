# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Resume: agree on one training state on all machines, compare its origin with the run, and restore it.

Only the main process writes states, into the `output_dir` of its machine. If each machine has its own folder,
the main process may run on another machine after a restart. So the first process of each machine looks for states, and
the newest one of all machines is broadcast to all processes.
"""

import textwrap
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list, gather_object

from sap_detr_cli.settings.train import TrainingSettings

from ..distributed import all_processes_together, first_on_machine, one_sentence, raise_together, this_process
from .checkpoints import CheckpointFolder, load_checkpoint, set_random_state
from .origin import ADVICE, compare_origins
from .run import Progress, TrainingRun


def resume(run: TrainingRun):
    """Put back the state that the settings name, on all processes; do nothing where there is none.

    Raises:
        ValueError: no such state, it cannot be read, or it belongs to another run; see [`compare_origins`].
    """
    state = newest_state(run)
    if state is None:
        return
    with all_processes_together():
        changes = compare_origins(state["origin"], run.origin)
        put_back(run, state)
    step = run.progress.step + 1
    for change in changes:
        run.report.message(f"{change} from step {step} on")


def newest_state(run: TrainingRun) -> dict[str, Any] | None:
    """Read the newest state of all machines, on all processes; None where a run starts anew.

    Raises:
        ValueError: see [`find_state`]; no machine has a state that can be used.
    """
    path, state, failure = None, None, None
    if first_on_machine():
        try:
            path = find_state(run.settings, run.checkpoints)
            state = load_checkpoint(path) if path is not None else None
        except (ValueError, OSError) as error:
            failure = one_sentence(error)
    steps = gather_object([state["progress"]["step"] if state is not None else -1])
    if max(steps) < 0:
        raise_together(failure)
        return None
    chosen = [state, f"Go on after step {max(steps)} from {path} ({this_process()})."]
    broadcast_object_list(chosen, from_process=steps.index(max(steps)))
    run.report.message(str(chosen[1]))
    return chosen[0]  # type: ignore[return-value]


def find_state(settings: TrainingSettings, checkpoints: CheckpointFolder) -> Path | None:
    """Return the file of the state that the settings name; None for a new run.

    Raises:
        ValueError: a new run would mix with an earlier one, or replace a model.
        OSError: there are states, and none of them can be read.
    """
    if settings.resume is None and checkpoints.files():
        raise ValueError(
            f"{settings.output_dir} holds checkpoints of an earlier run: continue with `--resume auto`, or choose "
            "another `output_dir`."
        )
    given = settings.resume not in (None, "auto")
    state = Path(str(settings.resume)) if given else checkpoints.newest()
    output = Path(settings.output_dir).resolve()
    continued = state is not None and output in state.resolve().parents
    if not continued and (output / "config.json").exists():
        raise ValueError(
            f"{settings.output_dir} holds a model, which training would replace: choose another `output_dir`."
        )
    return state


def put_back(run: TrainingRun, state: dict[str, Any]):
    """Load a state into the run's parts, and finish its epoch in the order in which it was begun.

    Raises:
        ValueError: tensors that do not fit this run's model or optimizer.
    """
    run.progress = Progress(**state["progress"])
    try:
        run.plain_model.load_state_dict(state["model"])
        if run.ema is not None:
            run.ema.load_state_dict(state["ema"])
        put_back_optimizer(run, state)
    except (RuntimeError, ValueError) as error:
        reason = textwrap.shorten(one_sentence(error), 200)
        raise ValueError(f"The checkpoint does not fit this run's model ({reason}): {ADVICE}") from error
    if run.accelerator.scaler is not None and state["scaler"] is not None:
        run.accelerator.scaler.load_state_dict(state["scaler"])
    if len(state["random"]) == run.accelerator.num_processes:
        set_random_state(state["random"][run.accelerator.process_index])
    else:
        run.report.message(
            f"The checkpoint is of {len(state['random'])} processes, this run of {run.accelerator.num_processes}: "
            "dropout starts from new random states."
        )
    epoch, place = divmod(run.progress.step, run.steps_per_epoch)
    if place:
        run.batches.sampler.go_on_with_epoch(epoch, state["group_size"])


def put_back_optimizer(run: TrainingRun, state: dict[str, Any]):
    """Load the moments of the optimizer and the step of the schedule; rates and decay are those of this run."""
    optimizer, scheduler = run.optimizer, run.scheduler
    own = [(group["initial_lr"], group["weight_decay"]) for group in optimizer.param_groups]
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    scheduler.base_lrs = [rate for rate, _ in own]
    for group, factor, (rate, decay) in zip(optimizer.param_groups, scheduler.lr_lambdas, own, strict=True):
        group.update(initial_lr=rate, weight_decay=decay, lr=rate * factor(scheduler.last_epoch))
        for parameter in group["params"]:
            moments = optimizer.state.get(parameter, {}).get("exp_avg", parameter)
            if moments.shape != parameter.shape:
                raise ValueError(f"a moment of {list(moments.shape)} for a parameter of {list(parameter.shape)}")
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
