"""What can be predicted: files, folders, patterns, http(s) addresses, video files, and the images of a COCO JSON.

Every source is walked lazily. An image is opened when its turn comes, so that memory holds a few images however many
there are. What turns out to be broken raises when it is loaded, not while walking.
"""

import glob
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from PIL import Image

from ..model.image_files import IMAGE_FORMATS, ImageFileError, open_image
from .downloads import MAX_BYTES, TIMEOUT, download, is_url
from .videos import VIDEO_SUFFIXES, count_frames, require_decoder, video_frames


@dataclass(frozen=True)
class InputImage:
    """One image to predict.

    Args:
        name: file or address, as the user knows it.
        load: opens it, upright RGB; raises OSError or ValueError that names it.
        image_id: its id in the COCO JSON.
        frame: number of a video's frame, from 0.
    """

    name: str
    load: Callable[[], Image.Image]
    image_id: int | None = None
    frame: int | None = None


class InputImages:
    """The images of all inputs, in the order given; folders and patterns sorted by name.

    Args:
        inputs: files, folders (searched through for images), patterns (`**` for any depth), http(s) addresses, video
            files; or one COCO JSON alone.
        image_folder: where the COCO JSON's images are, if not at one of the usual places.
        every: take every Nth frame of videos.
        left_out: a folder whose files folders and patterns do not give: the output.
        timeout, max_bytes: of a download.

    Raises:
        ValueError: the COCO JSON cannot be used, or stands beside other inputs.
        OSError: its images' folder is not found.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        image_folder: str | None = None,
        every: int = 1,
        left_out: Path | None = None,
        timeout: float = TIMEOUT,
        max_bytes: int = MAX_BYTES,
    ):
        self.inputs = list(inputs)
        self.every = every
        self.left_out = None if left_out is None else left_out.resolve()
        self.timeout, self.max_bytes = timeout, max_bytes
        self.coco_images: list[dict[str, Any]] | None = None
        if any(_is_coco(text) for text in inputs):
            if len(inputs) > 1:
                raise ValueError("A COCO JSON brings its own image ids: give it alone, without other inputs.")
            self.coco_images = read_coco_images(Path(inputs[0]))
            self.image_folder = Path(image_folder) if image_folder else _coco_image_folder(Path(inputs[0]))
        elif image_folder:
            raise ValueError("An image folder belongs to a COCO JSON; the inputs hold none.")

    def count(self) -> int | None:
        """Number of images, None where a video does not say how many frames it has.

        Raises:
            ImportError: there is a video and PyAV is not installed.
        """
        if self.coco_images is not None:
            return len(self.coco_images)
        total: int | None = 0
        for name in self._names():
            count: int | None = 1
            if _is_video(name):
                require_decoder()
                count = count_frames(name, self.every)
            total = None if total is None or count is None else total + count
        return total

    def __iter__(self) -> Iterator[InputImage]:
        if self.coco_images is not None:
            for entry in self.coco_images:
                path = self.image_folder / entry["file_name"]
                yield InputImage(str(path), partial(_open_listed, path, entry), image_id=entry["id"])
            return
        for name in self._names():
            if _is_video(name):
                for frame, load in video_frames(name, self.every):
                    yield InputImage(name, load, frame=frame)
            else:
                yield InputImage(name, partial(self._open, name))

    def _names(self) -> Iterator[str]:
        """Files and addresses; a folder or pattern without any gives itself, and fails when it is loaded."""
        for text in () if self.coco_images is not None else self.inputs:
            if is_url(text) or os.path.isfile(text):
                yield text
                continue
            found = False
            for path in self._search(text):
                found = True
                yield path
            if not found:
                yield text

    def _search(self, text: str) -> Iterator[str]:
        if os.path.isdir(text):
            paths: Iterator[str] = _walk(text)
        else:
            paths = iter(sorted(path for path in glob.iglob(text, recursive=True) if os.path.isfile(path)))
        for path in paths:
            if self.left_out is None or not Path(path).resolve().is_relative_to(self.left_out):
                yield path

    def _open(self, name: str) -> Image.Image:
        if is_url(name):
            if _is_video(urlsplit(name).path):
                raise ImageFileError(f"{name}: videos are read from files only; download it first.")
            return open_image(_NamedBytes(name, download(name, self.timeout, self.max_bytes)))
        if os.path.isdir(name):
            raise ImageFileError(f"{name}: no images in this folder.")
        if glob.has_magic(name) and not os.path.exists(name):
            raise ImageFileError(f"{name}: no files match this pattern.")
        return open_image(name)


class _NamedBytes(BytesIO):
    """Bytes that error messages call by the name of their origin."""

    def __init__(self, name: str, content: bytes):
        super().__init__(content)
        self.name = name


def read_coco_images(path: Path) -> list[dict[str, Any]]:
    """`id`, `file_name`, `width` and `height` (None where not stated) of a COCO JSON's images; all else is ignored.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not such a JSON; names the first entry that is malformed or whose id occurs twice.
    """
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict) or not isinstance(content.get("images"), list) or not content["images"]:
        raise ValueError(f'{path} is not COCO JSON: it has no list "images" with at least one entry.')
    images, ids = [], set()
    for entry in content["images"]:
        try:
            image = {"id": int(entry["id"]), "file_name": os.fspath(entry["file_name"])}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: image {str(entry)[:200]} is malformed: {error!r}.") from error
        if image["id"] in ids:
            raise ValueError(f"{path}: the image id {image['id']} occurs twice.")
        ids.add(image["id"])
        images.append({**image, "width": entry.get("width"), "height": entry.get("height")})
    return images


def short_name(name: str) -> str:
    """Last part of a path or address without its suffix, with nothing in it that a file name cannot have."""
    path = unquote(urlsplit(name).path) if is_url(name) else name
    stem = Path(path.replace("\\", "/")).stem
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in stem)[:100] or "image"


def _open_listed(path: Path, entry: dict[str, Any]) -> Image.Image:
    image = open_image(path)
    listed = (entry["width"], entry["height"])
    if None not in listed and image.size != listed:
        raise ImageFileError(
            f"{path} (image id {entry['id']}) is {image.width} x {image.height} pixels, but the COCO JSON says "
            f"{listed[0]} x {listed[1]}."
        )
    return image


def _coco_image_folder(path: Path) -> Path:
    """The folder of a COCO JSON's images at one of the places where `load_detection_data` looks."""
    try:
        from ..data.sources import find_coco_files
    except ImportError as error:
        raise ImportError(
            f"Name the folder of the images of {path} (--images), or install what finds it: "
            "pip install sap-detr-hf[train]."
        ) from error
    files = find_coco_files(path, path.stem.removeprefix("instances_"), None, None)
    assert files is not None  # a JSON file was given
    return files[1]


def _is_coco(text: str) -> bool:
    return not is_url(text) and text.lower().endswith(".json")


def _is_video(name: str) -> bool:
    return not is_url(name) and name.lower().endswith(VIDEO_SUFFIXES)


def _walk(folder: str) -> Iterator[str]:
    """Image files in a folder and its subfolders, sorted, without hidden ones."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(_image_suffixes()) and not name.startswith("."):
                yield os.path.join(parent, name)


@lru_cache(maxsize=1)
def _image_suffixes() -> tuple[str, ...]:
    registered = Image.registered_extensions().items()
    return tuple(suffix for suffix, image_format in registered if image_format in IMAGE_FORMATS)
