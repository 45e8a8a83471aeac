import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from project_scripts import load_script

from sap_detr_hf import SapDetrConfig, SapDetrImageProcessorPil
from sap_detr_hf.demo.digits import make_digits
from sap_detr_hf.drawing import contact_sheet, draw_detections, draw_sample, label_color


def pixel(image, x, y):
    return image.getpixel((x, y))


def test_boxes_and_points_are_where_they_belong():
    image = Image.new("RGB", (200, 150), "grey")
    boxes = torch.tensor([[20.0, 40.0, 120.0, 140.0]])
    drawn = draw_detections(image, boxes, ["cat"], torch.tensor([0.5]), torch.tensor([[70.0, 90.0]]))
    color = label_color("cat")
    for place in ((20, 90), (120, 90), (70, 40), (70, 140), (70, 90)):
        assert pixel(drawn, *place) == color, place
    assert pixel(drawn, 45, 60) == pixel(image, 45, 60) == pixel(drawn, 150, 60)
    assert np.asarray(image).std() == 0  # the given image is left alone
    assert pixel(drawn, 150, 140) == (128, 128, 128)


def test_names_stay_inside_the_picture():
    corner = draw_detections(Image.new("RGB", (60, 50)), [[55, 0, 60, 50], [0, 0, 60, 50]], ["a long name", "b"])
    rows, columns = np.nonzero(np.all(np.asarray(corner) == label_color("a long name"), axis=-1))
    assert len(rows) > 50
    assert columns.min() < 30


def test_without_boxes_the_picture_is_unchanged():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50), dtype=np.uint8))
    drawn = draw_detections(image, torch.zeros(0, 4), [])
    assert drawn.mode == "RGB"
    assert np.array_equal(np.asarray(drawn)[..., 0], np.asarray(image))


def test_different_numbers_of_boxes_and_names():
    with pytest.raises(ValueError, match="1 boxes but 2 labels"):
        draw_detections(Image.new("RGB", (9, 9)), [[0, 0, 1, 1]], ["a", "b"])
    with pytest.raises(ValueError, match="1 boxes but 0 points"):
        draw_detections(Image.new("RGB", (9, 9)), [[0, 0, 1, 1]], ["a"], points=[])


def test_colors_tell_classes_apart():
    assert len({label_color(str(digit)) for digit in range(10)}) == 10
    assert label_color("cat") == label_color("cat") != label_color("dog")


def test_contact_sheet():
    pictures = [
        Image.new("RGB", size, color) for size, color in (((30, 20), "red"), ((10, 40), "blue"), ((8, 8), "lime"))
    ]
    sheet = contact_sheet(pictures, columns=2, gap=4)
    assert sheet.size == (2 * 34 + 4, 2 * 44 + 4)
    assert pixel(sheet, 4 + 15, 4 + 20) == (255, 0, 0)
    assert pixel(sheet, 38 + 15, 4 + 20) == (0, 0, 255)
    assert pixel(sheet, 4 + 15, 48 + 20) == (0, 255, 0)
    assert contact_sheet(pictures, columns=3, cell=(50, 50)).size == (3 * 56 + 6, 62)
    with pytest.raises(ValueError, match="at least one image"):
        contact_sheet([])


@pytest.mark.parametrize(
    "changes",
    [{}, {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3}, {"do_normalize": False}, {"do_rescale": False}],
)
def test_sample_is_shown_as_it_was_before_normalization(changes):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    processor = SapDetrImageProcessorPil(do_resize=False, **changes)
    pixel_values = processor(images=Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0]
    labels = {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.5, 0.5]])}
    sample = {"pixel_values": pixel_values, "labels": labels}
    picture = draw_sample(sample, {1: "cat"}, processor)
    assert np.array_equal(np.asarray(picture)[33:], pixels[33:])  # below the box
    assert pixel(picture, 15, 20) == label_color("cat")
    assert pixel(picture, 45, 20) == label_color("cat")


@pytest.mark.parametrize("with_model", [False, True])
def test_script_shows_training_data(tmp_path, monkeypatch, capsys, with_model):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    make_digits(tmp_path / "digits", train=3, val=1, size=(96, 96))
    SapDetrConfig().save_pretrained(tmp_path / "model")
    SapDetrImageProcessorPil().save_pretrained(tmp_path / "model")
    script = load_script("show_data")
    arguments = [str(tmp_path / "digits"), "--output", str(tmp_path / "shown"), "--count", "5"]
    arguments += ["--shortest_edge", "120", "--longest_edge", "200"]
    script.main(arguments + (["--model", str(tmp_path / "model")] if with_model else []))
    assert "3 images" in capsys.readouterr().out
    shown = sorted(path.name for path in (tmp_path / "shown").iterdir())
    assert shown == ["0000_image_id_1.png", "0001_image_id_2.png", "0002_image_id_3.png", "all.png"]
    assert 72 <= min(Image.open(tmp_path / "shown" / shown[0]).size) <= 120


def test_small_images_are_enlarged_with_their_boxes_and_points():
    image = Image.new("RGB", (60, 40), "grey")
    drawn = draw_detections(image, [[10, 15, 30, 35]], ["cat"], points=[[20, 25]], least_side=150)
    assert drawn.size == (180, 120)
    for place in ((30, 75), (90, 75), (60, 105), (60, 75)):
        assert pixel(drawn, *place) == label_color("cat"), place
    assert draw_detections(image, [[10, 15, 30, 35]], ["cat"], least_side=60).size == (60, 40)
