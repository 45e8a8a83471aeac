"""Inputs of a prediction: files, folders, patterns, http(s) addresses, video files, and the images of a COCO JSON.

All sources are lazy: an image is opened only when it is needed, so memory holds only a few images at a time. A broken
image raises an error when it is loaded, not when the source lists it.
"""

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote, urlsplit

from PIL import Image

from ..data.coco import read_coco
from ..data.findings import IMAGE_LIST_ERRORS, check_image_ids
from ..data.image_paths import find_coco_files, find_images, walk_images
from ..model.image_files import ImageFileError, open_image
from .downloads import MAX_BYTES, TIMEOUT, download, is_url
from .videos import VIDEO_SUFFIXES, count_frames, video_frames


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
    image_id: int | str | None = None
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
        self.coco_images: list[InputImage] | None = None
        if any(text.lower().endswith(".json") and not is_url(text) for text in inputs):
            if len(inputs) > 1:
                raise ValueError("A COCO JSON has its own image ids: give it alone, without other inputs.")
            self.coco_images = read_coco_images(Path(inputs[0]), image_folder)
        elif image_folder:
            raise ValueError("`images` is the image folder of a COCO JSON, but the inputs hold none.")

    def count(self) -> int | None:
        """Number of images, None where a video does not say how many frames it has.

        Raises:
            ImportError: there is a video and PyAV is not installed.
        """
        if self.coco_images is not None:
            return len(self.coco_images)
        total = 0
        for name in self._names():
            count = count_frames(name, self.every) if _is_video(name) else 1
            if count is None:
                return None
            total += count
        return total

    def __iter__(self) -> Iterator[InputImage]:
        if self.coco_images is not None:
            yield from self.coco_images
            return
        for name in self._names():
            if _is_video(name):
                for frame, load in video_frames(name, self.every):
                    yield InputImage(name, load, frame=frame)
            else:
                yield InputImage(name, partial(self._open, name))

    def _names(self) -> Iterator[str]:
        """Files and addresses; a folder or pattern without any gives itself, and fails when it is loaded."""
        for text in self.inputs:
            paths = iter(()) if is_url(text) or os.path.isfile(text) else self._search(text)
            yield next(paths, text)
            yield from paths

    def _search(self, text: str) -> Iterator[str]:
        if os.path.isdir(text):
            paths: Iterator[str] = walk_images(text)
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


def read_coco_images(path: Path, image_folder: str | None = None) -> list[InputImage]:
    """The images of a COCO JSON, in `image_folder` or at one of the usual places; all else of it is ignored.

    Raises:
        OSError: the file cannot be read, or the images' folder is not found.
        ValueError: an entry is malformed, or an id occurs twice.
    """
    coco = read_coco(path, images_only=True)
    check_image_ids(coco.findings, coco.image_ids, coco.file_names.__getitem__)
    coco.findings.refuse_errors(path, IMAGE_LIST_ERRORS, "predicted")
    files = find_coco_files(path, path.stem.removeprefix("instances_"), None, image_folder)
    assert files is not None  # a JSON file was given
    found = find_images(coco.file_names, files[1], path)
    images = []
    for file, image_id, size in zip(found.paths, coco.image_ids.tolist(), coco.sizes.tolist(), strict=True):
        load = partial(_open_listed, file, image_id, size, found.ambiguous.get(file))
        images.append(InputImage(file, load, image_id))
    return images


def _open_listed(file: str, image_id: int | str, size: list[int], ambiguous: str | None) -> Image.Image:
    """An image of a COCO JSON, whose `size` is width and height there, 0 where it does not say."""
    if ambiguous is not None:
        raise ImageFileError(f"{file} (image id {image_id}) may mean {ambiguous}.")
    image = open_image(file)
    if 0 not in size and image.size != tuple(size):
        raise ImageFileError(
            f"{file} (image id {image_id}) is {image.width} x {image.height} pixels, but the COCO JSON says "
            f"{size[0]} x {size[1]}."
        )
    return image


def short_name(name: str) -> str:
    """Last part of a path or address without its suffix, with nothing in it that a file name cannot have."""
    path = unquote(urlsplit(name).path) if is_url(name) else name
    stem = Path(path.replace("\\", "/")).stem
    letters = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in stem)
    return letters.encode()[:100].decode(errors="ignore") or "image"  # file systems limit bytes, not letters


def _is_video(name: str) -> bool:
    return not is_url(name) and name.lower().endswith(VIDEO_SUFFIXES)
