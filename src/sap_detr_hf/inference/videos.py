"""Frames of video files through PyAV, upright."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from PIL import Image

from ..model.image_files import MAX_PIXELS, ImageFileError

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".wmv", ".flv"),
    *(".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".3gp", ".ogv"),
)


def count_frames(path: str, every: int = 1) -> int | None:
    """How many frames `video_frames` will give by the file's header, None where it does not say.

    Raises:
        ImportError: PyAV is absent; says what to install.
    """
    av = _decoder()
    try:
        with av.open(path) as container:
            frames = container.streams.video[0].frames
    except (av.error.FFmpegError, OSError, IndexError):
        return None
    return -(-frames // every) if frames else None


def video_frames(path: str, every: int = 1) -> Iterator[tuple[int, Callable[[], Image.Image]]]:
    """Number and loader of every Nth frame, decoded one after the other.

    A file that is broken, from the start or from some frame on, ends in a loader that raises `ImageFileError`.
    """
    av = _decoder()
    number = -1
    try:
        with av.open(path) as container:
            if not container.streams.video:
                raise ImageFileError(f"{path}: no video in this file.")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for number, frame in enumerate(container.decode(stream)):
                if number % every == 0:
                    yield number, partial(_upright, frame, path, number)
        if number < 0:
            raise ImageFileError(f"{path}: no frame in this video.")
    except (av.error.FFmpegError, OSError, ImageFileError) as error:
        reason = error if isinstance(error, ImageFileError) else f"{path}: broken after {number + 1} frames ({error})."
        yield number + 1, partial(_raise, ImageFileError(str(reason)))


def _decoder() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError("Video files are read with PyAV: pip install 'sap-detr-hf[video]'.") from error
    return av


def _upright(frame: Any, path: str, number: int) -> Image.Image:
    if frame.width * frame.height > MAX_PIXELS:
        raise ImageFileError(
            f"{path}, frame {number}: {frame.width} x {frame.height} pixels, more than the limit of {MAX_PIXELS}."
        )
    image = frame.to_image()
    # Phones store the turn beside the pixels, counterclockwise in degrees.
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def _raise(error: Exception) -> Image.Image:
    raise error
