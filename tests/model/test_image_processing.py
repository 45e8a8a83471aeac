"""The image processors of both backends: sizes, image modes, files, saving."""

import base64
import json
import subprocess
import sys
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from processor_cases import BACKENDS, SMALL, SapDetrImageProcessor, both_backends, needs_torchvision, photograph, target
from transformers import AutoImageProcessor

from sap_detr_hf.model.detection_processing import released_image_size
from sap_detr_hf.model.image_files import ImageFileError
from sap_detr_hf.model.image_processing_pil_sap_detr import SapDetrImageProcessorPil

# --- sizes ---


def size_in_released_code(width: int, height: int, size: int, max_size: int) -> tuple[int, int]:
    """The released rule step by step, with its own names and order; (height, width)."""
    min_original_size = float(min((width, height)))
    max_original_size = float(max((width, height)))
    if max_original_size / min_original_size * size > max_size:
        size = int(round(max_size * min_original_size / max_original_size))  # noqa: RUF046
    if (width <= height and width == size) or (height <= width and height == size):
        return height, width
    if width < height:
        new_width, new_height = size, int(size * height / width)
    else:
        new_height, new_width = size, int(size * width / height)
    return new_height, new_width


def test_released_size_formula():
    edges = [(800, 1333), (480, 1333), (400, 1333), (800, 800), (512, 640), (31, 47)]
    sides = [1, 2, 7, 20, 31, 47, 100, 333, 426, 427, 480, 500, 512, 600, 640, 799, 800, 801, 1000, 1066, 1333, 4000]
    seen_clamped = 0
    for shortest, longest in edges:
        for width in sides:
            for height in range(1, 700, 3) if width == 640 else sides:
                expected = size_in_released_code(width, height, shortest, longest)
                if 0 in expected:  # where the released code fails
                    expected = (1, longest) if height < width else (longest, 1)
                assert released_image_size(height, width, shortest, longest) == expected, (width, height)
                seen_clamped += max(width, height) / min(width, height) * shortest > longest
    assert seen_clamped > 500


@both_backends
@pytest.mark.parametrize(
    ("original", "resized"),
    [  # (width, height); by hand: 1333 * 200 / 640 = 416.6 -> 417, 417 * 640 / 200 = 1334.4 -> 1334
        ((640, 480), (1066, 800)),
        ((200, 640), (417, 1334)),
        ((640, 200), (1334, 417)),
        ((800, 900), (800, 900)),
        ((1, 1), (800, 800)),
        ((4000, 20), (1400, 7)),
        ((20, 4000), (7, 1400)),
        ((4000, 1), (1333, 1)),
    ],
)
def test_resized_size(processor_class, original, resized):
    width, height = original
    encoded = processor_class()(
        Image.new("RGB", original, (9, 99, 199)),
        annotations=target(1, [0, 0, width, height]),
        return_tensors="pt",
    )
    assert encoded.pixel_values.shape == (1, 3, resized[1], resized[0])
    assert torch.isfinite(encoded.pixel_values).all()
    (labels,) = encoded.labels
    assert labels["orig_size"].tolist() == [height, width]
    assert labels["size"].tolist() == [resized[1], resized[0]]
    assert labels["boxes"].tolist() == [[0.5, 0.5, 1.0, 1.0]]


@both_backends
def test_other_kinds_of_size(processor_class):
    image = photograph(400, 1)
    assert processor_class(size={"max_height": 50, "max_width": 60})(image, return_tensors="pt").pixel_values.shape == (
        (1, 3, 1, 60)
    )
    encoded = processor_class(size={"height": 50, "width": 60})(image, return_tensors="pt")
    assert encoded.pixel_values.shape == (1, 3, 50, 60)
    with pytest.raises(ValueError, match="shortest_edge"):
        processor_class(size={"shortest_edge": 50})(image)


def test_no_pixels():
    with pytest.raises(ValueError, match="0 x 5"):
        released_image_size(0, 5, 800, 1333)


# --- images ---


@needs_torchvision
@pytest.mark.parametrize("width_height", [(640, 480), (333, 500), (100, 37), (20, 400)])
def test_backends_agree(width_height):
    kwargs = {"size": {"shortest_edge": 160, "longest_edge": 256}, "do_normalize": False}
    image = photograph(*width_height)
    annotations = target(1, [3, 4, 15, 16], [0, 0, 9, 30.5])
    pil = SapDetrImageProcessorPil(**kwargs)(image, annotations=annotations, return_tensors="pt")
    torchvision = SapDetrImageProcessor(**kwargs)(image, annotations=annotations, return_tensors="pt")
    assert (pil.pixel_values - torchvision.pixel_values).abs().max() <= 2 / 255
    assert torch.equal(pil.pixel_mask, torchvision.pixel_mask)
    assert pil.labels[0].keys() == torchvision.labels[0].keys()
    for name, value in pil.labels[0].items():
        torch.testing.assert_close(value, torchvision.labels[0][name], msg=name)


@both_backends
def test_normalised_values(processor_class):
    encoded = processor_class(do_resize=False)(Image.new("RGB", (4, 3), (255, 0, 51)), return_tensors="pt")
    expected = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    assert encoded.pixel_values[0, :, 1, 2].tolist() == pytest.approx(expected, abs=1e-5)


def any_mode(mode: str) -> Image.Image:
    """The picture with left half dark and right half light in a given mode."""
    grey = Image.fromarray(np.repeat([[51] * 4 + [204] * 4], 6, axis=0).astype(np.uint8))
    if mode == "I;16":
        return Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    if mode == "F":
        return Image.fromarray(np.asarray(grey).astype(np.float32) / 255)
    if mode == "LA transparent":
        image = grey.convert("LA")
        image.putalpha(Image.new("L", (8, 6), 0))
        return image
    return grey.convert("RGB").convert(mode) if mode in ("CMYK", "RGBA", "P", "YCbCr") else grey.convert(mode)


@both_backends
@pytest.mark.parametrize(
    ("mode", "dark", "light"),
    [
        ("RGB", 51, 204),
        ("L", 51, 204),
        ("LA", 51, 204),
        ("LA transparent", 255, 255),
        ("P", 51, 204),
        ("RGBA", 51, 204),
        ("CMYK", 51, 204),
        ("YCbCr", 51, 204),
        ("I;16", 51, 204),
        ("I", 51, 204),
        ("F", 51, 204),
    ],
)
def test_image_modes(processor_class, mode, dark, light):
    processor = processor_class(do_resize=False, do_normalize=False)
    values = processor(any_mode(mode), return_tensors="pt").pixel_values[0] * 255
    assert values.shape == (3, 6, 8)
    assert values[:, :, :4].flatten().tolist() == pytest.approx([dark] * 72, abs=1)
    assert values[:, :, 4:].flatten().tolist() == pytest.approx([light] * 72, abs=1)


@both_backends
def test_one_bit_image(processor_class):
    image = Image.fromarray(np.array([[False, True]] * 3))
    assert image.mode == "1"
    values = processor_class(do_resize=False, do_normalize=False)(image, return_tensors="pt").pixel_values[0]
    assert values[:, 0].tolist() == [[0.0, 1.0]] * 3


@both_backends
@pytest.mark.parametrize("convert", [True, False])
def test_exif_orientation(processor_class, tmp_path, convert):
    """The person sees the bright spot left top; a camera held upright stored it elsewhere."""
    upright = np.zeros((64, 48, 3), dtype=np.uint8)
    upright[:16, :12] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned to the left: to be turned to the right
    Image.fromarray(np.rot90(upright).copy()).save(tmp_path / "phone.png", exif=exif)
    processor = processor_class(size=SMALL, do_normalize=False, do_convert_rgb=convert)
    annotations = target(1, [0, 0, 12, 16])

    for image in (Image.open(tmp_path / "phone.png"), str(tmp_path / "phone.png"), tmp_path / "phone.png"):
        encoded = processor(image, annotations=annotations, return_tensors="pt")
        (labels,) = encoded.labels
        assert labels["orig_size"].tolist() == [64, 48]
        assert labels["boxes"].tolist() == [[0.125, 0.125, 0.25, 0.25]]
        assert encoded.pixel_values[0, :, :16, :12].min() == 1
        assert encoded.pixel_values[0].sum() == 3 * 16 * 12


@both_backends
def test_arrays_and_tensors(processor_class):
    processor = processor_class(size=SMALL)
    image = photograph(60, 50)
    array = np.array(image)
    expected = processor(image, return_tensors="pt").pixel_values
    for same in (array, array.transpose(2, 0, 1), torch.from_numpy(array), [array]):
        assert torch.equal(processor(same, return_tensors="pt").pixel_values, expected)
    grey = array[..., 0]
    expected = processor(Image.fromarray(grey), return_tensors="pt").pixel_values
    for same in (grey[None], grey[..., None], torch.from_numpy(grey[None])):
        assert torch.equal(processor(same, return_tensors="pt").pixel_values, expected)


@both_backends
def test_tiny_images(processor_class):
    """Three pixels high or wide must not be taken for three channels."""
    processor = processor_class(do_resize=False, do_normalize=False)
    for width, height in [(1, 1), (3, 3), (1, 3), (3, 1), (4, 1)]:
        values = processor(Image.new("RGB", (width, height), (255, 0, 0)), return_tensors="pt").pixel_values
        assert values.shape == (1, 3, height, width)
        assert values[0].mean((1, 2)).tolist() == [1.0, 0.0, 0.0]


@both_backends
def test_batch_of_different_sizes(processor_class):
    processor = processor_class(size=SMALL)
    images = [photograph(64, 48), photograph(1, 1), photograph(20, 400), photograph(64, 48)]
    batch = processor(images, return_tensors="pt")
    for index, image in enumerate(images):
        alone = processor(image, return_tensors="pt").pixel_values[0]
        height, width = alone.shape[1:]
        assert torch.equal(batch.pixel_values[index, :, :height, :width], alone)
        assert batch.pixel_mask[index].sum() == height * width


@both_backends
def test_broken_and_missing_files(processor_class, tmp_path):
    jpeg = BytesIO()
    photograph(64, 64).save(jpeg, "JPEG")
    (tmp_path / "broken.jpg").write_bytes(jpeg.getvalue()[:300])
    processor = processor_class()
    with pytest.raises(ImageFileError, match=r"broken\.jpg"):
        processor([photograph(5, 5), str(tmp_path / "broken.jpg")])
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        processor(tmp_path / "gone.jpg")
    for length in range(4):  # whether a name could be base64 depends on its length
        name = "gone" + length * "e" + ".jpg"
        with pytest.raises(ValueError, match=name):
            processor(str(tmp_path / name))


@both_backends
def test_base64_image(processor_class):
    png = BytesIO()
    photograph(60, 50).save(png, "PNG")
    text = base64.b64encode(png.getvalue()).decode()
    processor = processor_class(size=SMALL)
    expected = processor(photograph(60, 50), return_tensors="pt").pixel_values
    assert torch.equal(processor(text, return_tensors="pt").pixel_values, expected)


# --- saving ---


@both_backends
def test_saved_is_loaded_by_either_backend(processor_class, tmp_path):
    processor_class(size=SMALL).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["image_processor_type"] == "SapDetrImageProcessor"
    assert saved["do_convert_rgb"] is True
    for parameter in BACKENDS:
        (loaded_class,) = parameter.values
        if loaded_class is None:
            continue
        loaded = AutoImageProcessor.from_pretrained(tmp_path, backend=parameter.id)
        assert type(loaded) is loaded_class
        assert dict(loaded.size) == SMALL


@both_backends
def test_defaults(processor_class):
    processor = processor_class()
    assert dict(processor.size) == {"shortest_edge": 800, "longest_edge": 1333}
    assert processor.do_convert_rgb
    assert processor.do_pad
    other = processor_class(size=SMALL)
    assert dict(processor.size) != dict(other.size)
    assert processor.valid_kwargs.__name__ == "SapDetrImageProcessorKwargs"


def test_pil_backend_works_without_torchvision(tmp_path):
    """In a process of its own, in which importing torchvision fails."""
    SapDetrImageProcessorPil(size=SMALL).save_pretrained(tmp_path)
    photograph(64, 48).save(tmp_path / "photo.png")
    script = """
import sys
sys.modules["torchvision"] = None
import sap_detr_hf
# transformers 5.17 itself offers no `transformers.AutoImageProcessor` without torchvision
from transformers.models.auto.image_processing_auto import AutoImageProcessor
processor = AutoImageProcessor.from_pretrained(sys.argv[1])
assert type(processor).__name__ == "SapDetrImageProcessorPil", type(processor)
assert not hasattr(sap_detr_hf, "SapDetrImageProcessor")
encoded = processor(sys.argv[1] + "/photo.png", return_tensors="pt")
assert encoded.pixel_values.shape == (1, 3, 48, 64), encoded.pixel_values.shape
try:
    import sap_detr_hf.model.image_processing_sap_detr
except ImportError:
    print("ok")
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "ok"), done.stderr


# --- arrays and tensors of other types ---


def eight_bits():
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


ARRAYS = {
    "uint16": lambda image: image.astype(np.uint16) * 257,
    "float32 in [0, 1]": lambda image: (image / 255).astype(np.float32),
    "float64 in [0, 1]": lambda image: image / 255,
    "float16 in [0, 1]": lambda image: (image / 255).astype(np.float16),
    "float32 in [0, 255]": lambda image: image.astype(np.float32),
    "int64": lambda image: image.astype(np.int64),
    "mirrored view of its mirror image": lambda image: np.ascontiguousarray(image[:, ::-1])[:, ::-1],
    "BGR view of BGR": lambda image: np.ascontiguousarray(image[..., ::-1])[..., ::-1],
    "channels first": lambda image: image.transpose(2, 0, 1),
    "tensor": lambda image: torch.from_numpy(image).permute(2, 0, 1),
    "uint16 tensor": lambda image: torch.from_numpy(image.astype(np.uint16) * 257).permute(2, 0, 1),
    "tensor in [0, 1]": lambda image: torch.from_numpy(image).permute(2, 0, 1) / 255,
    "bfloat16 tensor in [0, 1]": lambda image: torch.from_numpy(image & 0xF0).permute(2, 0, 1).bfloat16() / 255,
}


@both_backends
@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_of_any_type_are_read_as_what_they_show(processor_class, kind):
    image = eight_bits() & (0xF0 if "bfloat16" in kind else 0xFF)
    processor = processor_class(size={"height": 24, "width": 32})
    expected = processor(image, return_tensors="pt").pixel_values
    found = processor(ARRAYS[kind](image), return_tensors="pt").pixel_values
    assert found.dtype == torch.float32
    # Floats of [0, 255] and wide integers are resized without rounding to whole levels
    exact = kind not in ("float32 in [0, 255]", "int64")
    assert (found - expected).abs().max() <= (0 if exact else 1.1 / 255 / min(processor.image_std))


@both_backends
def test_masks_and_grey_arrays(processor_class):
    processor = processor_class(size={"height": 24, "width": 32})
    grey = eight_bits()[..., 0]
    mask = grey > 127

    def pixels(image, **options):
        return processor(image, return_tensors="pt", **options).pixel_values

    expected = pixels(Image.fromarray(grey))
    for image in (grey, [grey], grey / 255, torch.from_numpy(grey), grey.astype(np.uint16) * 257):
        assert torch.equal(pixels(image), expected)
    for layout in ("channels_first", "channels_last"):
        assert torch.equal(pixels(grey, input_data_format=layout), expected)
    assert torch.equal(pixels(mask), pixels(mask.astype(np.uint8) * 255))
    assert pixels([grey, mask]).shape == (2, 3, 24, 32)


@both_backends
@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "the list is empty"),
        ([[]], "the list is empty"),
        (np.full((8, 8, 3), np.nan, dtype=np.float32), "values from nan to nan"),
        (np.full((8, 8, 3), -1.0), "values from -1 to -1"),
        (np.full((8, 8, 3), 256, dtype=np.int32), "int32 has values from 256 to 256"),
        (np.ones((8, 8, 3), dtype=np.complex64), "complex64"),
        (np.zeros((0, 8, 3), dtype=np.uint8), "no pixels"),
    ],
)
def test_arrays_that_say_nothing_are_refused(processor_class, images, message):
    with pytest.raises(ValueError, match=message):
        processor_class()(images, return_tensors="pt")


@both_backends
def test_who_scales_himself_is_left_alone(processor_class):
    own = np.random.default_rng(0).normal(size=(3, 8, 8)).astype(np.float32)
    plain = {"do_resize": False, "do_normalize": False, "return_tensors": "pt"}
    kept = processor_class()(own, do_rescale=False, input_data_format="channels_first", **plain).pixel_values
    assert torch.equal(kept[0], torch.from_numpy(own))
    deep = np.full((3, 8, 8), 40000, dtype=np.uint16)
    (scaled,) = processor_class()(deep, rescale_factor=1 / 65535, **plain).pixel_values
    assert torch.allclose(scaled.float(), torch.tensor(40000 / 65535))
