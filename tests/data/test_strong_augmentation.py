"""Jitter, mosaic and mixup: boxes on what they mark, areas, crowds, empty images, the same draws everywhere."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from project_scripts import load_script
from tiny_training import differences, newest_state, run_here, write_recipe
from two_rectangles import BOXES, picture, target, visible_box

from sap_detr_hf import SapDetrImageProcessorPil
from sap_detr_hf.data import strong_augmentation
from sap_detr_hf.data.augmentation import make_augmentation, sample_randomness
from sap_detr_hf.data.dataset import load_detection_data
from sap_detr_hf.data.samples import DetectionRows, DetectionStream
from sap_detr_hf.data.strong_augmentation import StrongAugmentation, jitter, mixup, mosaic
from sap_detr_hf.demo.digits import make_digits

SIZE = {"shortest_edge": 96, "longest_edge": 160}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    make_digits(folder, train=8, val=2, size=(96, 80))
    return folder


def tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def forced(monkeypatch, mosaic_share, mixup_share):
    monkeypatch.setattr(strong_augmentation, "MOSAIC_SHARE", mosaic_share)
    monkeypatch.setattr(strong_augmentation, "MIXUP_SHARE", mixup_share)


def other(channel):
    """The test picture with the one box of `channel`, which is a crowd region."""
    pixels, labels = np.asarray(picture()).copy(), target([BOXES[channel]])
    pixels[..., 1 - channel] = 0
    one = torch.ones(1, dtype=torch.int64)
    return Image.fromarray(pixels), {**labels, "class_labels": channel * one, "iscrowd": one}


def test_jittered_boxes_stay_on_what_they_mark_and_keep_their_share_of_area():
    seen, cut, scales = 0, 0, []
    for seed in range(150):
        with sample_randomness(seed, 0, 0):
            image, labels = jitter(tensor(picture()), target(), (180, 240))
        assert image.shape == (3, 180, 240)
        assert labels["boxes"].canvas_size == (180, 240)
        boxes = torch.as_tensor(labels["boxes"])
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([240, 180, 240, 180])).all()
        # Half of each box is object, before and after, cut or not.
        assert torch.allclose(labels["area"], (boxes[:, 2:] - boxes[:, :2]).prod(1) / 2, rtol=0.02)
        for box, channel in zip(boxes, labels["class_labels"], strict=True):
            shown = image.clone()
            shown[:, (image == strong_augmentation.GRAY).all(0)] = 0
            assert (box - visible_box(shown, channel)).abs().max() <= 2
            width, height = (box[2:] - box[:2]).tolist()
            whole = (
                abs(width / height - (BOXES[channel][2] - BOXES[channel][0]) / (BOXES[channel][3] - BOXES[channel][1]))
                < 0.05
            )
            seen, cut = seen + 1, cut + (not whole)
            scales += [width / (BOXES[channel][2] - BOXES[channel][0]) / 0.75] if whole else []
    assert seen > 150
    assert cut > 20
    assert 0.38 < min(scales) < 0.6
    assert 1.6 < max(scales) < 2.05


def test_what_is_hardly_left_of_a_box_is_dropped():
    rows = [[0.0, 0.0, 100.0, 100.0], [0.0, 0.0, 0.4, 100.0]]
    image, found, shares = tensor(Image.new("RGB", (100, 100))), [], []
    for seed in range(300):
        with sample_randomness(seed, 0, 0):
            _, labels = jitter(image, target(rows, 100, 100), (100, 100), (1.0, 5.0))
        found += labels["class_labels"].tolist()
        width, height = (labels["boxes"][:, 2:] - labels["boxes"][:, :2]).T
        assert (torch.minimum(width, height) >= 1).all()
        shares += labels["area"][labels["class_labels"] == 0].tolist()
    assert 20 < found.count(0) < 290, "a tenth of the square is all that is seen at a scale of 3.2"
    assert 0 < found.count(1) < 100
    assert len({len(values) for values in labels.values()}) == 1
    assert shares == pytest.approx([5000.0] * len(shares)), "half of what is seen"


def test_mosaic_of_four_and_its_crowd_region():
    samples = [(tensor(picture()), target()), (tensor(picture()), target([]))]
    for channel in (0, 1):
        image, labels = other(channel)
        samples.append((tensor(image), labels))
    seen = {0: 0, 1: 0}
    for seed in range(40):
        with sample_randomness(seed, 0, 0):
            image, labels = mosaic(samples, (160, 200))
        assert image.shape == (3, 160, 200)
        assert len({len(values) for values in labels.values()}) == 1
        boxes = torch.as_tensor(labels["boxes"])
        assert torch.allclose(labels["area"], (boxes[:, 2:] - boxes[:, :2]).prod(1) / 2, rtol=0.05, atol=1)
        for box, channel, crowd in zip(boxes, labels["class_labels"], labels["iscrowd"], strict=True):
            x1, y1, x2, y2 = box.round().int().tolist()
            inside = image[:, y1 + 1 : y2 - 1, x1 + 1 : x2 - 1]
            if inside.numel():
                assert (inside[channel] > 128).float().mean() > 0.95
                seen[int(crowd)] += 1
            assert (y1 > 50) >= bool(crowd), "the crowd regions are in the lower tiles"
    assert min(seen.values()) > 15


def test_mixup_shows_both_images_and_has_all_boxes():
    white, black = (torch.full((3, 40, 60), value, dtype=torch.uint8) for value in (255, 0))
    with sample_randomness(0, 0, 0):
        image, labels = mixup((white, target([[1.0, 2.0, 30.0, 20.0]], 60, 40)), (black, target(width=60, height=40)))
    assert image.dtype == torch.uint8
    assert 0.45 * 255 - 1 <= image.float().mean() <= 0.55 * 255 + 1
    assert labels["boxes"].tolist() == [[1, 2, 30, 20], *BOXES]
    assert labels["class_labels"].tolist() == [0, 0, 1]
    assert labels["boxes"].canvas_size == (40, 60)
    with sample_randomness(0, 0, 0):
        _, labels = mixup((white, target([], 60, 40)), (black, target([], 60, 40)))
    assert labels["boxes"].shape == (0, 4)


@pytest.mark.parametrize("size", [(1, 1), (4000, 20), (20, 4000), (3, 2)])
def test_extreme_images(size, monkeypatch):
    forced(monkeypatch, 1.0, 1.0)
    augmentation = make_augmentation("strong", **SIZE)
    for seed in range(4):
        with sample_randomness(seed, 0, 0):
            mix = augmentation.in_epoch(0, lambda: (Image.new("RGB", (500, 3)), target([], 500, 3)))
            image, labels = mix(Image.new("RGB", size), target([[0.0, 0.0, *map(float, size)]], *size))
        assert labels["boxes"].canvas_size == tuple(image.shape[-2:])
        assert 1 <= min(image.shape[-2:]) <= max(image.shape[-2:]) <= 200


def test_no_more_boxes_than_the_model_has_queries(monkeypatch):
    forced(monkeypatch, 1.0, 1.0)
    counts = {}
    for most in (None, 5, 2):
        augmentation, numbers = StrongAugmentation(**SIZE, most_boxes=most), []
        for seed in range(25):
            with sample_randomness(seed, 0, 0):
                _, labels = augmentation.in_epoch(0, lambda: (picture(), target()))(picture(), target())
            numbers.append(len(labels["boxes"]))
        counts[most] = max(numbers)
    assert counts[None] > 5
    assert 2 < counts[5] <= 5
    assert counts[2] <= 2


def test_only_no_flip_never_mirrors(monkeypatch):
    forced(monkeypatch, 0.0, 0.0)
    for name, expected in (("strong", {True, False}), ("strong-no-flip", {True})):
        upright = set()
        for epochs in (None, 0):  # strong, and what comes after
            for seed in range(12):
                augmentation = make_augmentation(name, 240, 400, strong_epochs=epochs).in_epoch(0, None)
                with sample_randomness(seed, 0, 0):
                    _, labels = augmentation(picture(), target())
                if len(labels["boxes"]) == 2:
                    first, second = labels["boxes"]
                    upright.add(bool(first[0] < second[0]))
        assert upright == expected


def rows_of(digits, name="strong", seed=1, **options):
    augmentation = make_augmentation(name, **SIZE, **options)
    return DetectionRows(load_detection_data(digits), SapDetrImageProcessorPil(size=SIZE), augmentation, seed=seed)


def same(sample, expected):
    return torch.equal(sample["pixel_values"], expected["pixel_values"]) and all(
        torch.equal(values, expected["labels"][name]) for name, values in sample["labels"].items()
    )


def test_samples_depend_on_seed_epoch_and_index_alone(digits):
    rows = rows_of(digits)
    loader = torch.utils.data.DataLoader(rows, num_workers=2, persistent_workers=True, batch_size=2, collate_fn=list)
    found = {}
    for epoch in (1, 0):
        rows.set_epoch(epoch)
        torch.rand(3)  # what else a run draws does not matter
        found[epoch] = [sample for batch in loader for sample in batch]
    for epoch in (0, 1):
        rows.set_epoch(epoch)
        for index in reversed(range(len(rows))):
            assert same(found[epoch][index], rows[index])
    assert not all(same(a, b) for a, b in zip(found[0], found[1], strict=True))
    assert not all(same(a, b) for a, b in zip(found[1], rows_of(digits, seed=2), strict=True))
    assert [sample["labels"]["image_id"].item() for sample in found[0]] == list(range(1, 9))


def test_the_last_epochs_are_the_published_augmentation(digits):
    strong, released = rows_of(digits, strong_epochs=2), rows_of(digits, "released")
    for epoch, expected in ((0, False), (1, False), (2, True), (5, True)):
        strong.set_epoch(epoch), released.set_epoch(epoch)
        assert all(same(strong[index], released[index]) for index in range(8)) == expected


def test_streams_are_refused(digits):
    data = load_detection_data(digits, streaming=True)
    with pytest.raises(ValueError, match="mixes images"):
        DetectionStream(data, SapDetrImageProcessorPil(size=SIZE), make_augmentation("strong"))


def test_shown_as_trained(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    arguments = [str(digits), "--output", str(tmp_path / "shown"), "--augmentation", "strong", "--count", "2"]
    assert load_script("show_data").main([*arguments, "--shortest_edge", "96", "--longest_edge", "160"]) == 0
    sample = rows_of(digits, seed=42)[1]
    shown = Image.open(tmp_path / "shown" / "0001_image_id_2.png")
    assert shown.size == tuple(sample["pixel_values"].shape[:0:-1])


def test_training_is_strong_until_its_last_epochs_and_resumes_bit_for_bit(digits, tmp_path, monkeypatch):
    calls, mix = [], StrongAugmentation._mix
    monkeypatch.setattr(StrongAugmentation, "_mix", lambda self, *rest: calls.append(0) or mix(self, *rest))
    fields = {
        "data": str(digits),
        "augmentation": "strong",
        "epochs": 99,
        "max_steps": 6,
        "checkpoint_steps": 1,
        "keep_checkpoints": 9,
    }
    recipe = write_recipe(tmp_path / "recipe.yaml", **fields)
    assert run_here(recipe, "--output_dir", tmp_path / "whole") == 0
    assert len(calls) == 2 * 8  # images of two epochs
    state = tmp_path / "whole" / "checkpoints" / "step_00000003.pt"  # in the second epoch
    assert run_here(recipe, "--output_dir", tmp_path / "parts", "--resume", state) == 0
    assert len(calls) == 2 * 8 + 4
    whole, parts = (newest_state(tmp_path / name) for name in ("whole", "parts"))
    assert [text for name in ("model", "optimizer") for text in differences(whole[name], parts[name])] == []
