# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Make all processes of a run fail together: if only one fails, the others wait for it in the next collective call."""

import gc
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed
from accelerate import PartialState
from accelerate.utils import gather_object


@contextmanager
def all_processes_together() -> Iterator[None]:
    """Run a block on every process; if it fails on any process, all of them raise the first error.

    Raises:
        ValueError: the block raised a ValueError or OSError on some process.
    """
    failure = None
    try:
        yield
    except (ValueError, OSError) as error:
        failure = one_sentence(error)
    raise_together(failure)


def raise_together(failure: str | None, error: type[Exception] = ValueError) -> None:
    """Raise the first failure of all processes on all of them; every process must call this.

    Args:
        failure: this process's failure as one sentence; None where it has none.
        error: class of the exception. Its message names the process, unless all processes failed alike.
    """
    outcomes = gather_object([(failure, this_process())])
    for text, process in outcomes:
        if text is not None:
            alike = all(other == text for other, _ in outcomes)
            raise error(text if alike else f"{text} ({process})")


def this_process() -> str:
    """Name this process and its machine for messages, such as "process 1 of 4 on node-a"."""
    state = PartialState()
    return f"process {state.process_index} of {state.num_processes} on {socket.gethostname()}"


def say(text: str) -> None:
    """Print a line to stderr, once for all processes."""
    if PartialState().is_main_process:
        print(text, file=sys.stderr, flush=True)


def machines() -> list[str]:
    """Return the host name of each machine's first process; every process must call this."""
    return [name for name in gather_object([socket.gethostname() if first_on_machine() else ""]) if name]


def first_on_machine() -> bool:
    """Whether this process prints the messages of its machine; the launcher numbers them in the environment."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def connection_error(error: RuntimeError) -> str | None:
    """Say why another process could not be reached (it died or did not answer); None for any other error."""
    text = one_sentence(error)
    if not isinstance(error, torch.distributed.DistError) and "gloo" not in text:  # Gloo's errors have no class
        return None
    return re.sub(r"^\[\S+\] ", "", text).split(". ")[0].rstrip(".")


def end_processes() -> None:
    """Leave the process group when all processes are done; does nothing for a single process.

    Call it after the DDP model is gone: the threads of NCCL and Gloo live as long as anything references the process
    group, and a process that exits while they run is aborted.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def one_sentence(error: BaseException) -> str:
    """Return the message of an error; for an error from a data loader worker, its last line without the class."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if lines[0].startswith("Caught "):
        return lines[-1].split(": ", 1)[-1]
    return " ".join(line.strip() for line in lines)
