"""The folder that a command writes its results to: never over those of an earlier run unless told to."""

import shutil
from collections.abc import Sequence
from pathlib import Path


def prepare_folder(output: Path, overwrite: bool, results: Sequence[str]) -> None:
    """Make the folder; with `overwrite`, remove what an earlier run left there, and nothing else.

    Args:
        output: the folder.
        overwrite: whether it may hold anything.
        results: names of the files and folders that a run writes there.

    Raises:
        ValueError: the folder is not empty, and is not to be overwritten.
        OSError: it cannot be made.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file; the results need a folder.")
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise ValueError(f"{output} is not empty: name another folder, or give --overwrite to replace its results.")
    output.mkdir(parents=True, exist_ok=True)
    for name in results:
        if (output / name).is_dir():
            shutil.rmtree(output / name)
        else:
            (output / name).unlink(missing_ok=True)
