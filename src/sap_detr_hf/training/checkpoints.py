# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Training states on disk: one file each, written atomically, loaded without running code from it."""

import errno
import os
import pickle
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ..files import SUFFIX, whole_file
from ..messages import first_line

_NAME = re.compile(r"step_(\d{8})\.pt")


class CheckpointError(OSError):
    """A training state or model that cannot be written or read; the message is one sentence for the user."""


class CheckpointFolder:
    """The newest `keep` training states of a run, as `step_00000120.pt` files.

    A file is written aside, flushed to the disk and renamed, so a process killed at any moment, or a disk that runs
    full, leaves the older files and no half one under a name that `newest` would return.
    """

    def __init__(self, folder: str | Path, keep: int):
        self.folder, self.keep = Path(folder), keep

    def files(self) -> list[Path]:
        """List all states, the oldest first."""
        return sorted(path for path in self.folder.glob("step_*.pt") if _NAME.fullmatch(path.name))

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write the state after optimizer step `step` and removes all but the newest `keep`.

        Raises:
            CheckpointError: the disk is full or refuses; the older states are as before.
        """
        path = self.folder / f"step_{step:08d}.pt"
        make_folder(self.folder)
        for left_over in self.folder.glob(f"*{SUFFIX}"):
            left_over.unlink(missing_ok=True)
        write_atomically(path, lambda aside: _save_tensors(state, aside))
        for old in self.files()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def newest(self) -> Path | None:
        """Return the file of the newest readable state; None where there is none at all.

        Raises:
            CheckpointError: there are states, and none of them can be read.
        """
        unreadable: list[CheckpointError] = []
        for path in reversed(self.files()):
            try:
                load_checkpoint(path)
                return path
            except CheckpointError as error:
                unreadable.append(error)
        if unreadable:
            raise unreadable[0]
        return None


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a training state onto the CPU; only tensors and plain values, never code.

    Raises:
        CheckpointError: no such file, or not a training state.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no checkpoint {path}.") from error
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"The checkpoint {path} cannot be read ({first_line(error)}).") from error
    if not isinstance(state, dict) or "progress" not in state:
        raise CheckpointError(f"{path} is not a training state of this program: it holds no `progress`.")
    return state


def write_atomically(path: Path, write: Callable[[Path], object]):
    """Let `write` fill a file beside `path`, flushes it to the disk and renames it to `path`.

    Raises:
        CheckpointError: anything of this failed; `path` is as before.
    """
    try:
        with whole_file(path) as aside:
            write(aside)
            with open(aside, "rb") as file:
                os.fsync(file.fileno())
        _flush_folder(path.parent)
    except (OSError, RuntimeError) as error:
        cause = _disk_error(error)
        if cause is None:
            raise
        raise CheckpointError(
            f"{path} could not be written ({cause.strerror}); the previous file is unchanged"
        ) from error


def save_model_directory(folder: Path, model: PreTrainedModel, image_processor: BaseImageProcessor):
    """Write a directory that `from_pretrained` loads; each file replaces its predecessor only when it is complete.

    Raises:
        CheckpointError: the disk is full or refuses; a model that was there before is as before.
    """
    aside = folder / ".model.tmp"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        make_folder(aside)
        model.save_pretrained(aside)
        image_processor.save_pretrained(aside)
        for file in aside.glob("*.safetensors"):  # temporary files are readable only by their owner
            shutil.copymode(aside / "config.json", file)
        for file in sorted(aside.iterdir()):
            os.replace(file, folder / file.name)
    except (OSError, RuntimeError, SafetensorError) as error:
        cause = _disk_error(error)
        reason = cause.strerror if cause else first_line(error)
        raise CheckpointError(f"The model could not be written to {folder} ({reason})") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def make_folder(folder: str | Path):
    """Create a folder with its parents.

    Raises:
        CheckpointError: the place does not allow it.
    """
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"The folder {folder} could not be created ({error.strerror})") from error


def random_state() -> dict[str, Any]:
    """Collect all global random states of this process, as tensors and plain values."""
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (str(name), [int(key) for key in keys], int(position), int(has_gauss), float(cached)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_state(state: dict[str, Any]):
    """Put back the states of [`random_state`]."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.asarray(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _save_tensors(state: dict[str, Any], path: Path):
    # torch.save to a path would hide the cause (such as a full disk) behind another message: write via a Python file.
    with open(path, "wb") as file:
        torch.save(state, file)


def _disk_error(error: BaseException | None) -> OSError | None:
    """The operating system's error behind `error`: torch.save raises another one while it handles that."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error
        error = error.__cause__ or error.__context__
    return None


def _flush_folder(folder: Path):
    """Make a rename survive a power cut; not every file system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
