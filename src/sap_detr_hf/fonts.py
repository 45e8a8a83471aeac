"""Find a font with all letters of a class name: Pillow's own for Western European, otherwise an installed one."""

import importlib.util
import sys
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

FONT_FOLDERS = {
    "linux": ("/usr/share/fonts", "/usr/local/share/fonts", "~/.fonts", "~/.local/share/fonts"),
    "darwin": ("/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts"),
    "win32": ("C:/Windows/Fonts", "~/AppData/Local/Microsoft/Windows/Fonts"),
}
PROBE_SIZE = 16
NO_CHARACTER = "\uffff"  # drawn as the font's sign for a missing letter


def label_font(text: str, size: int) -> tuple[ImageFont.FreeTypeFont | ImageFont.ImageFont, str]:
    """Find a font for a name, one line of text, and a height in pixels.

    Returns:
        The font and what to draw with it: `text`, or where no installed font has its letters a readable substitute,
        without accents and with other letters as escapes (`\\u4eba`).
    """
    if _has_letters(ImageFont.load_default(PROBE_SIZE), text):
        return ImageFont.load_default(size), text
    path = font_file(text)
    if path is not None:
        return ImageFont.truetype(path, size), text
    return ImageFont.load_default(size), "".join(_in_ascii(letter) for letter in text)


def font_file(text: str) -> Path | None:
    """The file of the first installed font with all letters of a text; None where there is none."""
    return _font_file("".join(sorted(set(text))))


@lru_cache(maxsize=256)
def _font_file(letters: str) -> Path | None:
    for path in _installed_fonts():
        try:
            if _has_letters(ImageFont.truetype(path, PROBE_SIZE), letters):
                return path
        except OSError:  # a bitmap font of other sizes, or no font
            continue
    return None


def _installed_fonts() -> Iterator[Path]:
    """Yield DejaVu Sans, which matplotlib brings (Cyrillic, Greek, ...), then the system fonts, sans serif first."""
    matplotlib = importlib.util.find_spec("matplotlib")
    if matplotlib is not None and matplotlib.origin is not None:
        yield Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
    folders = [Path(folder).expanduser() for folder in FONT_FOLDERS.get(sys.platform, FONT_FOLDERS["linux"])]
    files = [file for folder in folders if folder.is_dir() for file in folder.rglob("*.[to]t[fc]")]
    yield from sorted(files, key=lambda file: ("sans" not in file.name.lower(), file.name))


def _in_ascii(letter: str) -> str:
    base = unicodedata.normalize("NFKD", letter)[0]
    return base if base.isascii() else letter.encode("ascii", "backslashreplace").decode()


def _has_letters(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str) -> bool:
    missing = bytes(font.getmask(NO_CHARACTER))
    return all(letter.isspace() or bytes(font.getmask(letter)) != missing for letter in set(text))
