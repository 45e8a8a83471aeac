import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import tiny_inputs, tiny_model

from sap_detr_hf import SapDetrImageProcessor, SapDetrImageProcessorPil
from sap_detr_hf.inference.detector import Detector, detect_with_points, prepare_batch, prepare_image, prepared_size

SIZE = {"shortest_edge": 64, "longest_edge": 96}


def noise(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height))


def test_each_detection_brings_the_point_of_its_query():
    model, processor = tiny_model(), SapDetrImageProcessorPil(size=SIZE)
    image = noise(120, 80)
    found = detect_with_points(model, processor, image, threshold=0.0, top_k=30)
    with torch.no_grad():
        outputs = model(**prepare_batch(processor, image))
    scale = torch.tensor([120, 80])
    assert len(found) == 30
    torch.testing.assert_close(found.points, outputs.pred_points[0, found.queries] * scale)
    torch.testing.assert_close(found.scores, outputs.logits[0, found.queries, found.classes].sigmoid())
    centers, sizes = (outputs.pred_boxes[0, found.queries] * scale.repeat(2)).split(2, dim=-1)
    torch.testing.assert_close(found.boxes, torch.cat([centers - sizes / 2, centers + sizes / 2], dim=-1))
    torch.testing.assert_close(found.coco_boxes, torch.cat([centers - sizes / 2, sizes], dim=-1))


@pytest.mark.parametrize("backend", [SapDetrImageProcessor, SapDetrImageProcessorPil])
@pytest.mark.parametrize("options", [{}, {"pad_size": {"height": 128, "width": 112}}, {"do_pad": False}])
def test_an_image_is_prepared_as_by_the_pipeline(backend, options):
    processor = backend(size=SIZE, **options)
    image = noise(120, 80)
    expected = processor(images=image, return_tensors="pt")
    prepared = prepare_image(processor, image)
    assert torch.equal(prepared["pixel_values"], expected["pixel_values"][0])
    assert ("pixel_mask" in prepared) == ("pad_size" in options)
    if "pad_size" in options:
        assert torch.equal(prepared["pixel_mask"], expected["pixel_mask"][0])
    assert tuple(prepared["pixel_values"].shape[-2:]) == prepared_size(processor, 80, 120)


def test_modes_stay_as_they_were():
    model = tiny_model().train()
    model.model.backbone.eval()
    modes = [module.training for module in model.modules()]
    first, second = (detect_with_points(model, SapDetrImageProcessorPil(size=SIZE), noise(120, 80)) for _ in range(2))
    assert torch.equal(first.scores, second.scores)  # no dropout
    assert [module.training for module in model.modules()] == modes


def test_output_that_is_not_finite_is_an_error():
    model = tiny_model()
    with torch.no_grad():
        model.model.query_sides.weight.fill_(float("nan"))
    detector = Detector(model, SapDetrImageProcessorPil(size=SIZE))
    with pytest.raises(ValueError, match=r"output for a\.png is not finite"):
        detector.detect(noise(120, 80), "a.png")


def test_one_bad_image_does_not_cost_the_others_of_its_batch():
    pixels, _ = tiny_inputs(((64, 96),) * 3)
    pixels[1] = float("inf")
    detector = Detector(tiny_model(), SapDetrImageProcessorPil(), threshold=0.0)
    found = detector({"pixel_values": pixels}, [(96, 64)] * 3, ["a", "b", "c"])
    assert [isinstance(each, ValueError) for each in found] == [False, True, False]
    assert "output for b is" in str(found[1])
