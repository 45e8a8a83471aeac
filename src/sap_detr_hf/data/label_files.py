"""Data sets with one label file per image: the shared code of the YOLO and Pascal VOC readers.

A reader converts the label files to the content of a COCO JSON, with the file and line of each entry, so that the rules
of `coco.py` apply to all formats.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .coco import CocoAnnotations, parse_image_id

LARGEST_FILE = 2**24  # bytes of a label file


@dataclass(frozen=True)
class LabelFiles:
    """The files of one split.

    Attributes:
        source: The COCO JSON, `data.yaml` or the like, for messages.
        image_folder: A folder of images.
        files: Those whose content the rows depend on.
        images: Those whose names and sizes they depend on.
        read: Reads them.
    """

    source: Path
    image_folder: Path
    files: list[str]
    images: list[str]
    read: Callable[[], CocoAnnotations]

    def facts(self) -> str:
        """Names and sizes of the files, and times of the images, which are not read for the cache's key."""
        states: list[tuple] = [(path, os.stat(path).st_size) for path in self.files]
        for path in self.images:
            state = os.stat(path) if os.path.isfile(path) else None
            states.append((path, state and (state.st_size, state.st_mtime_ns, state.st_ctime_ns)))
        return json.dumps([str(self.source), str(self.image_folder), *states])


def read_bytes(path: str | Path) -> bytes:
    """The content of a label file.

    Raises:
        ValueError: It is too large to be one.
    """
    with open(path, "rb") as file:
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise ValueError(f"{path} has more than {LARGEST_FILE} bytes")
    return content


def read_lines(path: str | Path, errors: str = "surrogateescape") -> Iterator[tuple[int, str]]:
    """Number and text of the lines that are not empty."""
    for number, line in enumerate(read_bytes(path).decode("utf-8-sig", errors).splitlines(), 1):
        if line.strip():
            yield number, line.strip()


def image_ids(names: Sequence[str]) -> list[int | str]:
    """Image ids made of file names: without suffix if these differ and are all numbers or all text, else with it."""
    try:
        ids = [parse_image_id(os.path.splitext(name)[0]) for name in names]
    except ValueError:
        return list(names)
    return ids if len(set(ids)) == len(ids) and len(set(map(type, ids))) == 1 else list(names)
