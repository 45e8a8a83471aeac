import random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from two_rectangles import picture, target, visible_box

from sap_detr_hf.data.augmentation import (
    FlipAugmentation,
    ReleasedAugmentation,
    make_augmentation,
    random_size_crop,
    sample_randomness,
    sanitize,
)


@pytest.mark.parametrize("augmentation", [FlipAugmentation(240, 400), ReleasedAugmentation(240, 400)])
def test_boxes_stay_on_what_they_mark(augmentation):
    seen = 0
    for seed in range(60):
        with sample_randomness(seed, 0, 0):
            image, labels = augmentation(picture(), target())
        assert labels["boxes"].canvas_size == tuple(image.shape[-2:])
        for box, channel in zip(labels["boxes"], labels["class_labels"], strict=True):
            if (box[2:] - box[:2]).min() > 3:
                assert (torch.as_tensor(box) - visible_box(image, channel)).abs().max() <= 2
                seen += 1
        for channel in {0, 1} - set(labels["class_labels"].tolist()):
            assert (image[channel] >= 128).sum() <= 3 * max(image.shape[-2:])
    assert seen > 60


def test_area_keeps_its_share_of_the_box():
    for seed in range(40):
        with sample_randomness(seed, 0, 0):
            _, labels = ReleasedAugmentation(240, 400)(picture(), target())
        boxes = torch.as_tensor(labels["boxes"])
        # Half of each box is object, before and after; a crop takes the same share from both.
        assert torch.allclose(labels["area"], (boxes[:, 2:] - boxes[:, :2]).prod(1) / 2, rtol=0.02)


def test_published_sizes():
    image = Image.new("RGB", (640, 480))
    shortest, cropped = set(), set()
    for seed in range(120):
        with sample_randomness(seed, 0, 0):
            result, _ = ReleasedAugmentation()(image, target([]))
        height, width = result.shape[-2:]
        # A narrow crop has its longest side limited, and its shortest then follows.
        if max(height, width) < 1333:
            shortest.add(min(height, width))
        cropped.add(abs(width / height - 4 / 3) > 0.01)
        assert max(height, width) <= 1333 + 2
    assert shortest <= set(range(480, 801, 32))
    assert len(shortest) >= 9
    assert cropped == {True, False}


def test_sizes_scale_with_the_shortest_edge():
    augmentation = make_augmentation("released", 240, 400)
    assert (augmentation.scales[0], augmentation.scales[-1]) == (144, 240)
    assert augmentation.scales_before_crop == [120, 150, 180]
    assert augmentation.crop == (115, 180)


def test_crop_sides():
    sides = set()
    for seed in range(100):
        with sample_randomness(seed, 0, 0):
            image, _ = random_size_crop(torch.zeros(3, 100, 300, dtype=torch.uint8), target([]), 120, 200)
        assert image.shape[-2] == 100
        sides.add(image.shape[-1])
    assert min(sides) < 130
    assert max(sides) > 190
    assert sides <= set(range(120, 201))


def test_half_of_the_images_are_mirrored():
    mirrored = 0
    for seed in range(300):
        with sample_randomness(seed, 0, 0):
            image, _ = FlipAugmentation(240, 400)(picture(), target())
        mirrored += visible_box(image, 0)[0] > 100
    assert 120 < mirrored < 180


def test_sanitize_clips_drops_and_keeps_fields_together():
    boxes = [[-10.0, 0.0, 10.0, 10.0], [400.0, 10.0, 500.0, 20.0], [5.0, 5.0, 5.0, 50.0], [0.0, 200.0, 50.0, 300.0]]
    result = sanitize(target(boxes))
    assert result["boxes"].tolist() == [[0, 0, 10, 10], [0, 200, 50, 240]]
    assert result["class_labels"].tolist() == [0, 3]
    assert result["area"].tolist() == [50, 1000]
    assert len(result["iscrowd"]) == 2


@pytest.mark.parametrize("size", [(1, 1), (4000, 20), (20, 4000), (1, 3000)])
@pytest.mark.parametrize("name", ["flip", "released"])
def test_extreme_images(size, name):
    for seed in range(4):
        with sample_randomness(seed, 0, 0):
            image, labels = make_augmentation(name)(
                Image.new("RGB", size), target([[0.0, 0.0, *map(float, size)]], *size)
            )
        assert min(image.shape[-2:]) >= 1
        assert max(image.shape[-2:]) <= 1400
        assert len(labels["boxes"]) == 1


def test_image_without_boxes():
    with sample_randomness(1, 0, 0):
        _, labels = ReleasedAugmentation(240, 400)(picture(), target([]))
    assert labels["boxes"].shape == (0, 4)
    assert labels["area"].shape == (0,)


def test_randomness_is_a_function_of_seed_epoch_and_index():
    def draw(*arguments):
        with sample_randomness(*arguments):
            return torch.rand(()).item(), random.random(), np.random.rand()

    torch.manual_seed(0)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert draw(1, 2, 3) == draw(1, 2, 3)
    different = {draw(1, 2, 3), draw(2, 1, 3), draw(1, 3, 2), draw(0, 2, 3), draw(1, 2, 4)}
    assert len(different) == 5
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]


def test_own_callable_by_name(tmp_path, monkeypatch):
    (tmp_path / "my_augmentation.py").write_text("def twice(image, target):\n    return image, target\nnumber = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert make_augmentation("my_augmentation:twice")(1, 2) == (1, 2)
    assert make_augmentation("none") is None
    with pytest.raises(ValueError, match="int, not something to call"):
        make_augmentation("my_augmentation:number")
    with pytest.raises(ValueError, match="no attribute 'thrice'"):
        make_augmentation("my_augmentation:thrice")
    with pytest.raises(ValueError, match="No module named 'no_such_module'"):
        make_augmentation("no_such_module:thing")
    with pytest.raises(ValueError, match=r'"stronger".*"none", "flip", "released", "strong"'):
        make_augmentation("stronger")


def test_torchvision_transforms_qualify():
    image, labels = v2.RandomHorizontalFlip(p=1)(picture(), target())
    assert torch.allclose(
        torch.as_tensor(labels["boxes"][0]), visible_box(v2.functional.pil_to_tensor(image), 0), atol=1
    )
