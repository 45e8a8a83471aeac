"""Files that appear when they are complete."""

import os
from collections.abc import Iterator
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
