"""The example without torch reads pictures as `predict` does, or refuses them."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sap_detr_hf.model.image_files import open_image

pytest.importorskip("onnxruntime")

EXAMPLE = Path(__file__).parents[2] / "examples" / "predict_onnx.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("predict_onnx", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def save(folder: Path, kind: str) -> Path:
    """A picture of 40 x 30 pixels of some kind."""
    x = np.linspace(0, 255, 40, dtype=np.float32)
    grey = np.tile(x, (30, 1))
    rgb = Image.fromarray(np.stack([grey, grey[:, ::-1], 255 - grey], -1).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    path = folder / f"{kind}.{ {'cmyk': 'jpg', 'turned': 'jpg', 'float': 'tiff'}.get(kind, 'png') }"
    if kind == "cmyk":
        rgb.convert("CMYK").save(path)
    elif kind == "turned":
        rgb.save(path, exif=exif)
    elif kind == "float":
        Image.fromarray(grey / 255).save(path)
    elif kind == "sixteen_bits":
        Image.fromarray((grey * 257).astype(np.uint16)).save(path)
    elif kind == "palette":
        rgb.quantize(16).save(path, transparency=0)
    else:
        rgb.convert(kind).save(path)
    return path


@pytest.mark.parametrize("kind", ["RGB", "L", "LA", "RGBA", "1", "palette", "cmyk", "turned"])
def test_same_pixels_as_predict(example, tmp_path, kind):
    path = save(tmp_path, kind)
    assert np.array_equal(np.asarray(example.open_upright_rgb(path)), np.asarray(open_image(path)))


@pytest.mark.parametrize("kind", ["sixteen_bits", "float"])
def test_more_than_8_bits_are_refused(example, tmp_path, kind):
    with pytest.raises(ValueError, match=r"16 or 32 bits per channel .* save it with 8 bits"):
        example.open_upright_rgb(save(tmp_path, kind))
