"""Images of every mode, orientation and state of health, as files on the disk."""

import os
import re
import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageFile

from sap_detr_hf.model.image_files import ImageFileError, open_image, to_rgb, upright_size

ORIENTATION = 0x0112
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def corner_picture() -> Image.Image:
    """40 wide, 24 high, four corners of different color."""
    picture = Image.new("RGB", (40, 24), WHITE)
    picture.paste(RED, (0, 0, 16, 8))  # left top
    picture.paste(GREEN, (24, 0, 40, 8))  # right top
    picture.paste(BLUE, (0, 16, 16, 24))  # left bottom
    return picture


# Orientation -> how a camera stores the upright picture, from the EXIF standard's description of rows and columns.
STORED = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, 1),
    7: lambda p: np.rot90(p, 2).swapaxes(0, 1),
    8: lambda p: np.rot90(p, -1),
}


def save_with_orientation(path, picture: Image.Image, orientation: int) -> None:
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](np.asarray(picture))))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    lossless = {"lossless": True} if path.suffix == ".webp" else {}
    stored.save(path, exif=exif, **lossless)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tiff", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path, suffix, orientation):
    path = tmp_path / f"turned{suffix}"
    picture = corner_picture()
    save_with_orientation(path, picture, orientation)

    image = open_image(path)

    assert image.size == picture.size
    assert upright_size(path) == (40, 24, orientation != 1)
    difference = np.asarray(image, dtype=int) - np.asarray(picture, dtype=int)
    # 4 x 4 pixels inside each corner: JPEG blurs at the edges of colors
    inside = np.abs(difference[np.ix_([2, 3, 4, 5, 18, 19, 20, 21], [4, 5, 6, 7, 32, 33, 34, 35])])
    assert inside.max() <= (8 if suffix == ".jpg" else 0)


def test_upright_image_is_not_turned_again(tmp_path):
    save_with_orientation(tmp_path / "turned.png", corner_picture(), 6)
    once = open_image(tmp_path / "turned.png")
    assert np.array_equal(np.asarray(to_rgb(once)), np.asarray(once))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("exif", [b"Exif\0\0not tiff at all", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"])
def test_malformed_metadata_is_ignored(tmp_path, suffix, exif):
    corner_picture().save(tmp_path / f"odd{suffix}", exif=exif)
    assert open_image(tmp_path / f"odd{suffix}").size == (40, 24)
    assert upright_size(tmp_path / f"odd{suffix}") == (40, 24, False)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_orientation_beside_a_malformed_tag(tmp_path):
    """Some files have tags that Pillow reads but cannot write, here a text as compression."""
    entries = struct.pack("<HHII", ORIENTATION, 3, 1, 6) + struct.pack("<HHII", 0x0103, 2, 3, 0x414141)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<I", 0)
    corner_picture().save(tmp_path / "odd.jpg", exif=exif)
    assert open_image(tmp_path / "odd.jpg").size == (24, 40)
    assert upright_size(tmp_path / "odd.jpg") == (24, 40, True)


def test_upright_size_reads_the_header_only(tmp_path, monkeypatch):
    decoded = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: decoded.append(image))
    save_with_orientation(tmp_path / "turned.jpg", corner_picture().resize((400, 240)), 6)
    content = (tmp_path / "turned.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    assert upright_size(tmp_path / "cut.jpg") == (400, 240, True)

    corner_picture().resize((400, 240)).save(tmp_path / "plain.png")
    content = (tmp_path / "plain.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    assert upright_size(tmp_path / "cut.png") == (400, 240, False)
    assert not decoded


def pixel(path, at=(0, 0)):
    image = open_image(path)
    assert image.mode == "RGB"
    return image.getpixel(at)


def test_grey_with_and_without_alpha(tmp_path):
    Image.new("L", (4, 3), 100).save(tmp_path / "grey.png")
    assert pixel(tmp_path / "grey.png") == (100, 100, 100)
    Image.new("LA", (4, 3), (100, 0)).save(tmp_path / "clear.png")
    assert pixel(tmp_path / "clear.png") == WHITE
    Image.new("LA", (4, 3), (100, 255)).save(tmp_path / "opaque.png")
    assert pixel(tmp_path / "opaque.png") == (100, 100, 100)


def test_one_bit(tmp_path):
    image = Image.new("1", (4, 3), 0)
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "bit.png")
    assert pixel(tmp_path / "bit.png") == (0, 0, 0)
    assert pixel(tmp_path / "bit.png", (1, 0)) == WHITE


def test_rgba_lies_on_white(tmp_path):
    image = Image.new("RGBA", (4, 3), (200, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    image.putpixel((2, 0), (0, 0, 0, 51))  # a fifth opaque
    image.save(tmp_path / "alpha.png")
    assert pixel(tmp_path / "alpha.png") == (200, 0, 0)
    assert pixel(tmp_path / "alpha.png", (1, 0)) == WHITE
    assert pixel(tmp_path / "alpha.png", (2, 0)) == (204, 204, 204)


@pytest.mark.parametrize("name", ["palette.png", "palette.gif"])
def test_palette_with_transparency(tmp_path, name):
    image = Image.new("P", (4, 3), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / name)
    assert pixel(tmp_path / name) == (10, 20, 30)
    assert pixel(tmp_path / name, (1, 0)) == (200, 100, 50)
    image.save(tmp_path / name, transparency=1)
    assert pixel(tmp_path / name) == (10, 20, 30)
    assert pixel(tmp_path / name, (1, 0)) == WHITE


def test_rgb_with_a_transparent_color(tmp_path):
    image = Image.new("RGB", (4, 3), RED)
    image.putpixel((1, 0), BLUE)
    image.save(tmp_path / "keyed.png", transparency=BLUE)
    assert pixel(tmp_path / "keyed.png") == RED
    assert pixel(tmp_path / "keyed.png", (1, 0)) == WHITE


def test_cmyk(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=95)
    red, green, blue = pixel(tmp_path / "print.jpg", (8, 8))
    assert red > 245
    assert max(green, blue) < 10


@pytest.mark.parametrize("name", ["depth.png", "depth.tiff", "depth.pgm"])
def test_16_bit_is_scaled(tmp_path, name):
    values = np.array([[0, 257 * 10, 257 * 128, 65535]], dtype=np.uint16).repeat(3, axis=0)
    if name.endswith("pgm"):
        (tmp_path / name).write_bytes(b"P5 4 3 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(tmp_path / name)
    grey = np.asarray(open_image(tmp_path / name))[0, :, 0]
    assert grey.tolist() == [0, 10, 128, 255]


def test_dark_16_bit_stays_dark(tmp_path):
    """No guess from the values where the file states 16 bits."""
    values = np.full((3, 4), 200, dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "dark.png")
    (tmp_path / "dark.pgm").write_bytes(b"P5 4 3 65535\n" + values.astype(">u2").tobytes())
    assert pixel(tmp_path / "dark.png") == (1, 1, 1)
    assert pixel(tmp_path / "dark.pgm") == (1, 1, 1)


def test_16_bit_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    values = np.zeros((24, 40), dtype=np.uint16)
    values[0, 0] = 65535  # stored left top is upright right top
    Image.fromarray(values).save(tmp_path / "turned.png", exif=exif)
    image = open_image(tmp_path / "turned.png")
    assert image.size == (24, 40)
    assert image.getpixel((23, 0)) == WHITE


@pytest.mark.parametrize(
    ("values", "greys"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([0.0, 25700.0, 65535.0], [0, 100, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, float("nan"), 1.0], [0, 0, 255]),
        ([-5.0, -5.0, -5.0], [0, 0, 0]),
    ],
)
def test_float_range(tmp_path, values, greys):
    Image.fromarray(np.array([values], dtype=np.float32)).save(tmp_path / "float.tiff")
    assert np.asarray(open_image(tmp_path / "float.tiff"))[0, :, 0].tolist() == greys


@pytest.mark.parametrize(
    ("values", "greys"),
    [([0, 100, 255], [0, 100, 255]), ([0, 25700, 65535], [0, 100, 255]), ([0, 600_000, 1_000_000], [0, 153, 255])],
)
def test_32_bit_range(tmp_path, values, greys):
    Image.fromarray(np.array([values], dtype=np.int32)).save(tmp_path / "long.tiff")
    assert np.asarray(open_image(tmp_path / "long.tiff"))[0, :, 0].tolist() == greys


def test_to_rgb_leaves_the_given_image(tmp_path):
    image = Image.new("RGBA", (4, 3), (0, 0, 0, 0))
    to_rgb(image)
    assert (image.mode, image.getpixel((0, 0))) == ("RGBA", (0, 0, 0, 0))
    rgb = Image.new("RGB", (4, 3))
    assert to_rgb(rgb) is rgb


def test_sources(tmp_path):
    path = tmp_path / "picture.png"
    corner_picture().save(path)
    expected = np.asarray(corner_picture())
    with open(path, "rb") as file:
        for source in (path, str(path), path.read_bytes(), file, BytesIO(path.read_bytes())):
            assert np.array_equal(np.asarray(open_image(source)), expected)


def broken_files(folder) -> list[str]:
    whole = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(whole, "JPEG")
    jpeg = whole.getvalue()
    whole = BytesIO()
    corner_picture().resize((400, 240)).save(whole, "PNG")
    png = whole.getvalue()
    contents = {
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "header_only.jpg": jpeg[:30],
        "truncated.png": png[: len(png) // 2],
        "damaged.png": png[:60] + bytes(byte ^ 0x5A for byte in png[60:90]) + png[90:],
        "text.jpg": b"<html>404 not found</html>",
        "empty.png": b"",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return list(contents)


def test_broken_files_are_named(tmp_path):
    for name in broken_files(tmp_path):
        with pytest.raises(ImageFileError, match=re.escape(name)):
            open_image(tmp_path / name)
    assert issubclass(ImageFileError, ValueError)


def test_missing_file_and_folder(tmp_path):
    for read in (open_image, upright_size):
        with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
            read(tmp_path / "gone.jpg")
        with pytest.raises(OSError, match=re.escape(tmp_path.name)):
            read(tmp_path)


def test_pixel_limit(tmp_path):
    path = tmp_path / "large.png"
    Image.new("L", (100, 50)).save(path)
    assert open_image(path, max_pixels=5000).size == (100, 50)
    with pytest.raises(ImageFileError, match=r"large\.png.* 5000 pixels .*limit of 4999"):
        open_image(path, max_pixels=4999)


def claim_size(png: bytes, width: int, height: int) -> bytes:
    """The file with other numbers in its header: what a decompression bomb looks like before it is decoded."""
    header = b"IHDR" + struct.pack(">II", width, height) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


def test_decompression_bomb(tmp_path):
    corner_picture().save(tmp_path / "bomb.png")
    content = (tmp_path / "bomb.png").read_bytes()
    (tmp_path / "bomb.png").write_bytes(claim_size(content, 100_000, 100_000))
    with pytest.raises(ImageFileError, match=r"bomb\.png.*10000000000 pixels.*limit"):
        open_image(tmp_path / "bomb.png")
    (tmp_path / "bomb.png").write_bytes(claim_size(content, 12_000, 12_000))
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(ImageFileError, match=r"bomb\.png.*144000000 pixels.*limit of 134217728"),
    ):
        open_image(tmp_path / "bomb.png")


def test_postscript_is_never_run(tmp_path):
    """Pillow would hand such a file to Ghostscript, whatever its name."""
    script = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n({tmp_path}/out) (w) file closefile\n"
    (tmp_path / "photo.jpg").write_text(script)
    with pytest.raises(ImageFileError, match=r"photo\.jpg: not an image"):
        open_image(tmp_path / "photo.jpg")
    assert os.listdir(tmp_path) == ["photo.jpg"]
