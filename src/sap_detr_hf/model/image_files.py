"""Image files and image modes: convert any file to an upright 8-bit RGB image."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import IO

import numpy as np
from PIL import ExifTags, Image

# 0.4 GB as 8-bit RGB. Above Pillow's warning (2**26.4), below the size at which Pillow itself refuses (2**27.4).
MAX_PIXELS = 2**27

# Only these are opened: other formats that Pillow knows run an external program (EPS) or are no photographs. AVIF and
# HEIF are read where the installed Pillow or a plugin can.
IMAGE_FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")

# EXIF orientation -> what brings the stored pixels upright. Own table rather than `ImageOps.exif_transpose`, which
# writes the remaining metadata anew and fails on photographs whose other tags are malformed.
UPRIGHT_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

ImageSource = str | os.PathLike | bytes | IO[bytes]


class ImageFileError(ValueError):
    """An image that is broken, truncated, too large, or no image at all. The message names the file."""


def open_image(source: ImageSource, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open an image file as a person sees it: upright (EXIF orientation applied), 8-bit RGB.

    Args:
        source: path, the file's bytes, or a binary file object. Of several frames the first is read.
        max_pixels: largest accepted width x height; checked on the header, before any pixel is decoded.

    Returns:
        A loaded `PIL.Image.Image` of mode "RGB", see [`to_rgb`].

    Raises:
        FileNotFoundError: there is no such file (other `OSError`s likewise when it cannot be opened).
        ImageFileError: too many pixels, broken, truncated, or not an image.
    """
    name = _name(source)
    with _open_header(source) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise ImageFileError(
                f"{name}: the image has {width * height} pixels ({width} x {height}), more than the limit of "
                f"{max_pixels}; shrink it or raise max_pixels."
            )
        try:
            return to_rgb(image)
        except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error, ...
            raise ImageFileError(f"{name}: the image is broken or truncated ({error}).") from error


def upright_size(source: ImageSource) -> tuple[int, int, bool]:
    """Size of an image as a person sees it, from the file's header alone.

    A PNG's orientation is only seen where it stands before the pixels, as nearly all writers put it.

    Returns:
        `(width, height, exif_rotated)` in pixels, upright; `exif_rotated` is true where the pixels are stored turned or
        mirrored, so that boxes drawn on the stored pixels do not fit the upright image.

    Raises:
        FileNotFoundError: there is no such file.
        ImageFileError: the header is broken, or the file is not an image.
    """
    with _open_header(source) as image:
        # `PngImageFile.getexif` decodes all pixels to look behind them, the base class's does not.
        orientation = _orientation(lambda: Image.Image.getexif(image))
        # Pillow states a TIFF's size already upright, hence its tags.
        tags = getattr(image, "tag_v2", None)
        width, height = image.size if tags is None else (tags[256], tags[257])
    if orientation >= 5:
        width, height = height, width
    return width, height, orientation != 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn a PIL image of any mode into 8-bit RGB, upright by its EXIF orientation.

    Transparency (alpha channel or transparent palette entry) is put on white. 16-bit gray is scaled, not clipped. Modes
    "I" (32-bit integers) and "F" (float) state no range; it is taken to be the smallest of [0, 1] ("F" only), [0, 255]
    and [0, 65535] that holds all values, otherwise the lowest value becomes black and the highest white.

    Returns:
        An RGB image; the given object itself where nothing is to be done. The given image keeps its pixels and mode.
    """
    image.load()
    transposition = UPRIGHT_TRANSPOSITIONS.get(_orientation(image.getexif))
    rgb = _without_transparency(_eight_bit(image))
    if rgb.mode != "RGB":
        rgb = rgb.convert("RGB")
    if transposition is not None:
        rgb = rgb.transpose(transposition)
        rgb.info = {}  # holds the orientation, which would turn the image once more
    return rgb


def _name(source: ImageSource) -> str:
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    if isinstance(source, bytes):
        return f"<image of {len(source)} bytes>"
    return str(getattr(source, "name", "<image file object>"))


@contextmanager
def _open_header(source: ImageSource) -> Iterator[Image.Image]:
    if isinstance(source, (str, os.PathLike)):
        with open(source, "rb") as file:
            yield _read_header(file, _name(source))
    else:
        yield _read_header(BytesIO(source) if isinstance(source, bytes) else source, _name(source))


def _read_header(file: IO[bytes], name: str) -> Image.Image:
    Image.init()
    try:
        return Image.open(file, formats=[known for known in IMAGE_FORMATS if known in Image.OPEN])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageFileError(f"{name}: {error} Shrink it or raise PIL.Image.MAX_IMAGE_PIXELS.") from error
    except Exception as error:
        raise ImageFileError(f"{name}: not an image that can be read ({error}).") from error


def _orientation(getexif: Callable[[], Image.Exif]) -> int:
    """EXIF orientation 1..8; 1 (upright) where it is absent, out of range, or the metadata cannot be read."""
    try:
        orientation = getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # malformed metadata (SyntaxError, struct.error, ...): viewers show such a file as it is stored
        return 1
    return orientation if orientation in UPRIGHT_TRANSPOSITIONS else 1


def _without_transparency(image: Image.Image) -> Image.Image:
    if image.mode[-1] not in "Aa" and "transparency" not in image.info:
        return image
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode[0] not in "IF":  # I, I;16 and its byte orders, F
        return image
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    black, contrast = _value_range(image, float(values.min()), float(values.max()))
    return Image.fromarray(np.rint((values - black) * (255.0 / contrast)).astype(np.uint8))


def _value_range(image: Image.Image, lowest: float, highest: float) -> tuple[float, float]:
    """Value of black, and the distance from there to white."""
    # Pillow reads 16-bit PNG (older versions) and PNM files as "I", scaled to 16 bits.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return 0.0, 65535.0
    for white in (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0):
        if lowest >= 0 and highest <= white:
            return 0.0, white
    return lowest, (highest - lowest) or 1.0
