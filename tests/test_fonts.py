"""Names keep their letters: a font that has them is found, or a readable substitute is drawn."""

from pathlib import Path

import matplotlib
import pytest
from PIL import Image, ImageFont

from sap_detr_hf import fonts
from sap_detr_hf.drawing import draw_detections
from sap_detr_hf.explain import figures
from sap_detr_hf.fonts import label_font

DEJAVU = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


@pytest.fixture(autouse=True)
def forget_fonts():
    fonts._font_file.cache_clear()


def test_ascii_keeps_pillows_font():
    font, text = label_font("person: 0.93", 20)
    assert text == "person: 0.93"
    assert font.getname() == ImageFont.load_default(20).getname()


@pytest.mark.parametrize("name", ["café Größe", "человек", "Ωμέγα", "ğüşiöç"])
def test_letters_are_drawn_with_a_font_that_has_them(name):
    font, text = label_font(name, 20)
    assert text == name
    missing = bytes(font.getmask("\uffff"))
    assert all(bytes(font.getmask(letter)) != missing for letter in name if letter != " ")


def test_installed_font_is_found(tmp_path, monkeypatch):
    """Where matplotlib is absent, a font of the system's folders."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "broken.ttf").write_bytes(b"no font")
    (tmp_path / "deep" / "Some Sans.ttf").write_bytes(DEJAVU.read_bytes())
    monkeypatch.setattr(fonts, "FONT_FOLDERS", {"linux": (str(tmp_path),)})
    monkeypatch.setattr(fonts.importlib.util, "find_spec", lambda name: None)
    font, text = label_font("кот", 20)
    assert (text, Path(font.path).name) == ("кот", "Some Sans.ttf")


@pytest.mark.parametrize(("name", "shown"), [("人", r"\u4eba"), ("naïve 車", r"naive \u8eca"), ("café", "cafe")])
def test_substitute_where_no_font_has_the_letters(name, shown, monkeypatch):
    monkeypatch.setattr(fonts, "_installed_fonts", lambda: iter(()))
    assert label_font(name, 20)[1] == shown


def test_different_names_give_different_pictures():
    """Missing letters would all look alike."""
    image = Image.new("RGB", (200, 100))
    pictures = {draw_detections(image, [[20, 40, 90, 90]], [name]).tobytes() for name in ("щука", "окунь")}
    colorless = {draw_detections(image, [[20, 40, 90, 90]], ["щ" * 3 + end]).tobytes() for end in ("ю", "я")}
    assert len(pictures) == len(colorless) == 2


def test_figures_draw_a_name_as_it_stands():
    """Dollar signs are no formula in it, and Cyrillic letters are not boxes."""
    image = Image.new("RGB", (120, 90))
    pictures = set()
    for name in ("$x", "$x$", "щука", "окунь"):
        canvas = figures._Canvas(image, 1)
        canvas.title(0, name)
        pictures.add(canvas.picture().tobytes())
    assert len(pictures) == 4
