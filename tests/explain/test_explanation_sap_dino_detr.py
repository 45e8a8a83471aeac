"""Explanations of SAP-DINO-DETR show the cells, points, sides and sampling locations that the model computed."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from project_scripts import load_script
from tiny_dino import tiny_dino

from sap_detr_hf import SapDetrImageProcessorPil
from sap_detr_hf.app.pictures import PictureDetector
from sap_detr_hf.explain.explain import explain_detection, explain_matching
from sap_detr_hf.explain.sampling import attention_map
from sap_detr_hf.inference.detector import detect_with_points
from sap_detr_hf.model.deformable_attention import SapDinoDetrSideDirectedSampling
from sap_detr_hf.model.token_pyramid import token_pyramid

pytest.importorskip("matplotlib")

from sap_detr_hf.explain import figures

SIZE = {"shortest_edge": 96, "longest_edge": 160}
PADDED = {"pad_size": {"height": 160, "width": 192}}
SCALE = np.array([150, 100], dtype=np.float32)


@pytest.fixture(scope="module")
def model():
    return tiny_dino(id2label=dict(enumerate("abcdef")))


@pytest.fixture(scope="module")
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 150, 3), dtype=np.uint8))


@pytest.mark.parametrize("padding", [{}, PADDED])
def test_explanation_is_what_the_model_computed(model, image, padding):
    processor = SapDetrImageProcessorPil(size=SIZE, **padding)
    before = [len(module._forward_hooks) for module in model.modules()]
    explanation = explain_detection(model, processor, image, threshold=0.001, detection=1, layer=1)
    assert [len(module._forward_hooks) for module in model.modules()] == before
    found, query = detect_with_points(model, processor, image, threshold=0.001), explanation.query
    assert query == found.queries[1]
    assert np.allclose(explanation.points[-1], found.points[1], atol=1e-3)
    assert np.allclose(explanation.boxes[-1], found.boxes[1], atol=1e-3)
    seen = []
    forward = SapDinoDetrSideDirectedSampling.locations
    attention = model.model.decoder.layers[1].cross_attn
    attention.locations = lambda *given, **places: seen.append(forward(attention, *given, **places)) or seen[-1]
    with torch.no_grad():
        outputs = model(**processor(images=[image], return_tensors="pt"), output_attentions=True)
    del attention.locations
    level = int(outputs.query_levels[0, query])
    assert explanation.cell_levels[query] == level
    assert np.allclose(explanation.reference_points[query], outputs.query_corners[0, query] * SCALE, atol=1e-3)
    assert np.allclose(explanation.cell_size, outputs.query_cells[0, query] * SCALE, atol=1e-3)
    assert np.allclose(
        explanation.entered_points, outputs.intermediate_reference_points[:, 0, query] * SCALE, atol=1e-3
    )
    x1, y1, x2, y2 = explanation.cells[query]
    for x, y in (*explanation.points, *explanation.entered_points):
        assert x1 - 1e-3 <= x <= x2 + 1e-3
        assert y1 - 1e-3 <= y <= y2 + 1e-3
    weights = outputs.cross_attentions[1][0, query].numpy()
    assert np.allclose(explanation.sampling_weights, weights, atol=1e-6)
    assert np.allclose(explanation.sampling_weights.sum((1, 2)), 1, atol=1e-5)
    # In [0, 1] of the padded map of each level, of which the image is the upper left part
    sizes = [(20, 24), (10, 12), (5, 6), (3, 3)] if padding else [(12, 18), (6, 9), (3, 5), (2, 3)]
    valid = [(12, 18), (6, 9), (3, 5), (2, 3)] if padding else sizes
    for number, ((rows, columns), (height, width)) in enumerate(zip(valid, sizes, strict=True)):
        expected = seen[0][0, query, :, number].numpy() * [width / columns, height / rows] * SCALE
        assert np.allclose(explanation.sampling_points[:, number], expected, atol=1e-2), number
    assert explanation.attention.shape == (4, 12, 18)
    assert (explanation.attention.sum((1, 2)) <= 1 + 1e-4).all()
    assert explanation.map_size == (150, 100)


def test_attention_goes_to_the_tokens_between_which_a_location_lies():
    pyramid = token_pyramid([torch.zeros(1, 32, 4, 8), torch.zeros(1, 32, 2, 4)], None)
    locations = torch.full((1, 2, 2, 2), -5.0)  # outside
    weights = torch.tensor([[[0.5, 0.1], [0.3, 0.1]]])
    locations[0, 0, 0] = torch.tensor([2.0 / 8, 1.5 / 4])  # between columns 1 and 2, in row 1
    found = attention_map(locations, weights, pyramid)[0]
    expected = torch.zeros(4, 8)
    expected[1, 1:3] = 0.25
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    locations[0, 1, 0] = torch.tensor(
        [3.5 / 4, 0.25]
    )  # in the middle of the coarse level's last token of the first row
    more = attention_map(locations, weights, pyramid)[0] - expected
    assert more.sum() == pytest.approx(0.3, abs=1e-5)
    assert more[:2, 6:].sum() > 0.15
    assert more.argmax() in (6, 7)


def test_figures_matching_and_page(model, image, tmp_path):
    processor = SapDetrImageProcessorPil(size=SIZE)
    explanation = explain_detection(model, processor, image, threshold=0.001)
    for name in ("explanation", "reference_points", "sides", "layers", "heads", "attention"):
        picture = getattr(figures, f"draw_{name}")(explanation)
        assert np.asarray(picture).std() > 10, name
    other = explain_detection(model, processor, image, threshold=0.001, detection=1)
    assert figures.draw_heads(other).tobytes() != figures.draw_heads(explanation).tobytes()
    matching = explain_matching(model, processor, image, [[10, 20, 70, 80], [60, 5, 140, 60]], [1, 4])
    assert matching.queries.shape == (3, 2)
    inside = (matching.points >= matching.cells[..., :2] - 1e-3) & (matching.points <= matching.cells[..., 2:] + 1e-3)
    assert inside.all()
    assert figures.draw_matching(matching).mode == "RGB"
    image.save(tmp_path / "photo.png")
    detector = PictureDetector(model, processor)
    detector.detector.threshold = 0.001
    picture = detector.detect(str(tmp_path / "photo.png"), "photo.png")
    detector.attend(picture, 0)
    assert picture.explained[0].attention.shape[1:] == explanation.attention.shape[1:]


def test_script(model, image, tmp_path):
    model.save_pretrained(tmp_path / "model")
    SapDetrImageProcessorPil(size=SIZE).save_pretrained(tmp_path / "model")
    image.save(tmp_path / "photo.png")
    arguments = [tmp_path / "model", tmp_path / "photo.png", "--output", tmp_path / "out", "--query", 3]
    assert load_script("explain").main([str(argument) for argument in arguments]) == 0
    names = ["attention", "explanation", "layers", "reference_points", "sampling", "sides"]
    assert sorted(path.stem for path in (tmp_path / "out").glob("*.png")) == names
    numbers = json.loads((tmp_path / "out" / "explanation.json").read_text())
    assert numbers["query"] == 3
    assert numbers["level"] in range(4)
