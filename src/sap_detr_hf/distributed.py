# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Processes of one run fail together or not at all: a process that fails alone leaves the others waiting for ever."""

import gc
from collections.abc import Callable
from typing import TypeVar

import torch.distributed
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

Result = TypeVar("Result")


def together(accelerator: Accelerator, action: Callable[[], Result]) -> Result:
    """Runs `action` on every process; where it fails on any, all of them raise the first failure's message.

    Raises:
        ValueError: `action` raised a ValueError or OSError on some process.
    """
    result, failure = None, None
    try:
        result = action()
    except (ValueError, OSError) as error:
        failure = one_sentence(error)
    failures = [text for text in gather_object([failure]) if text]
    if failures:
        raise ValueError(failures[0])
    return result  # type: ignore[return-value]


def on_main_process(accelerator: Accelerator, action: Callable[[], Result]) -> Result:
    """Runs `action` on the main process only and gives its (picklable) result to all; a failure is raised on all.

    Raises:
        ValueError: `action` raised a ValueError or OSError.
    """
    result = together(accelerator, lambda: action() if accelerator.is_main_process else None)
    results = [result]
    broadcast_object_list(results)
    return results[0]  # type: ignore[return-value]


def end_processes() -> None:
    """Takes this process out of the group, when all have done their work; nothing to do for a single process.

    Whatever holds the group, such as a model wrapped for several processes, must be out of use: its communication
    threads end with the last holder, and a process whose interpreter ends before they do is aborted.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def one_sentence(error: BaseException) -> str:
    """The message of an error; of one that a loader's worker process passed on, its last line without the class."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if lines[0].startswith("Caught "):
        return lines[-1].split(": ", 1)[-1]
    return " ".join(line.strip() for line in lines)
