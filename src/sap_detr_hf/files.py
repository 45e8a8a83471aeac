"""Write files atomically, and prepare the output folder of a command."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SUFFIX = ".partial"


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a path beside `path` to write to and renames it to `path` at the end; after an error `path` is as before.

    A killed process leaves a file whose name ends in `SUFFIX`.
    """
    path = Path(path)
    aside = path.with_name(f"{path.name}{SUFFIX}")
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def require_new_folder(folder: Path) -> None:
    """Refuse a folder that holds something, or a file.

    Raises:
        ValueError: says to name another one.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not an empty folder: name a new one.")


def prepare_folder(output: Path, overwrite: bool, results: Sequence[str]) -> None:
    """Make a result folder, never over an earlier run unless told to.

    With `overwrite`, remove what an earlier run left there (files and folders named `results`), and nothing else.

    Raises:
        ValueError: the folder is not empty and is not to be overwritten, or a folder in it has the name of a result but
            stands there without a result file, so that it is not of an earlier run.
        OSError: it cannot be made.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file; the results need a folder.")
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise ValueError(f"{output} is not empty: name another folder, or give --overwrite to replace its results.")
    output.mkdir(parents=True, exist_ok=True)
    folders = [output / name for name in results if (output / name).is_dir()]
    if folders and not any((output / name).is_file() for name in results):
        raise ValueError(f"{folders[0]} is not of an earlier run, which would be removed: name another output folder.")
    for name in results:
        if (output / name).is_dir():
            shutil.rmtree(output / name)
        else:
            (output / name).unlink(missing_ok=True)
