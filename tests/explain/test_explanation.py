"""Explanations show what the model computed, at the place where it is in the image."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from project_scripts import load_script
from tiny_model import tiny_model

from sap_detr_hf import SapDetrImageProcessorPil
from sap_detr_hf.explain.explain import explain_detection, explain_matching
from sap_detr_hf.inference.detector import detect_with_points
from sap_detr_hf.model import loss as loss_sap_detr

pytest.importorskip("matplotlib")

from sap_detr_hf.explain import figures as figures

SIZE = {"shortest_edge": 96, "longest_edge": 160}
PADDED = {"pad_size": {"height": 160, "width": 192}}
TRUTH = ([[10, 20, 70, 80], [60, 5, 140, 60], [0, 0, 30, 30]], [1, 4, 1])


@pytest.fixture(scope="module")
def model():
    return tiny_model(id2label=dict(enumerate("abcdef")))


@pytest.fixture(scope="module")
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 150, 3), dtype=np.uint8))


def explained(model, image, processor_options=None, **options):
    processor = SapDetrImageProcessorPil(size=SIZE, **(processor_options or {}))
    return explain_detection(model, processor, image, **{"threshold": 0.01, **options})


def inputs_of(image, **options):
    return SapDetrImageProcessorPil(size=SIZE, **options)(images=[image], return_tensors="pt")


@pytest.mark.parametrize("padding", [{}, PADDED])
def test_last_layer_is_the_detection(model, image, padding):
    explanation = explained(model, image, padding, detection=2)
    found = detect_with_points(model, SapDetrImageProcessorPil(size=SIZE, **padding), image, threshold=0.01)
    assert explanation.query == found.queries[2]
    assert explanation.label == found.labels[2]
    assert explanation.scores[-1] == pytest.approx(found.scores[2].item(), abs=1e-6)
    assert np.allclose(explanation.points[-1], found.points[2], atol=1e-3)
    assert np.allclose(explanation.boxes[-1], found.boxes[2], atol=1e-3)
    assert explanation.detections.labels == found.labels
    assert torch.allclose(explanation.detections.boxes, found.boxes, atol=1e-3)


def test_layers_are_the_models(model, image):
    explanation = explained(model, image, query=7)
    with torch.no_grad():
        inputs = inputs_of(image)
        outputs = model(**inputs, labels=[{"class_labels": torch.tensor([0]), "boxes": torch.full((1, 4), 0.5)}])
    scale = np.array([150, 100, 150, 100], dtype=np.float32)
    for layer in range(2):
        expected = outputs.auxiliary_outputs[layer]
        assert np.allclose(explanation.points[layer], expected["pred_points"][0, 7].numpy() * scale[:2], atol=1e-3)
        index = "abcdef".index(explanation.label)
        assert explanation.scores[layer] == pytest.approx(expected["logits"][0, 7, index].sigmoid().item(), abs=1e-6)
        # The model records the point that entered layer i as what layer i + 1 refines.
        recorded = outputs.intermediate_reference_points[layer + 1, 0, 7].numpy()
        assert np.allclose(explanation.entered_points[layer], recorded * scale[:2], atol=1e-3)
    sides = outputs.intermediate_box_sides[:, 0, 7].numpy()
    assert np.allclose(explanation.entered_sides, sides * scale, atol=1e-3)
    ends = np.concatenate(
        [explanation.points - explanation.sides[:, :2], explanation.points + explanation.sides[:, 2:]], 1
    )
    assert np.allclose(ends, explanation.boxes, atol=1e-3)
    corner = explanation.reference_points[7]
    assert np.allclose(corner, [2 / 5 * 150, 1 / 4 * 100], atol=0.01)  # second row, third column of 4 x 5
    for points in (explanation.points, explanation.entered_points):
        assert (points >= corner - 1e-3).all()
        assert (points <= corner + explanation.cell_size + np.float32(1e-3)).all()


def test_points_that_start_at_the_center(image):
    names = {"point_start": "center", "point_update": "exact", "head_points": "current", "inner_loss": "distance"}
    model = tiny_model(id2label=dict(enumerate("abcdef")), num_groups=2, denoising_pairs=3, **names)
    explanation = explained(model, image, query=7)
    corner = explanation.reference_points[7]
    center = corner + np.array(explanation.cell_size) / 2
    assert np.allclose(explanation.entered_points[0], center, atol=1e-3)
    for points in (explanation.points, explanation.entered_points):
        assert (points >= corner - 1e-3).all()
        assert (points <= corner + explanation.cell_size + np.float32(1e-3)).all()


@pytest.mark.parametrize("layer", [0, -1])
@pytest.mark.parametrize("padding", [{}, PADDED])
def test_gaussian_and_attention_are_the_models(model, image, layer, padding):
    explanation = explained(model, image, padding, layer=layer)
    biases = []
    modules = [each.gaussian for each in model.model.decoder.layers]
    hook = modules[layer].register_forward_hook(lambda module, arguments, output: biases.append(output))
    model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = model(**inputs_of(image, **padding), output_attentions=True)
    model.set_attn_implementation("sdpa")
    hook.remove()
    map_shape = (5, 6) if padding else (3, 5)
    assert explanation.gaussian.shape == explanation.attention.shape == (4, *map_shape)
    bias = biases[0][0, :, explanation.query].exp()
    assert np.allclose(explanation.gaussian, bias.reshape(4, *map_shape), atol=1e-6)
    # The same Gaussian, drawn anew from its center and width
    keys = [(np.arange(n) + 0.5) * size / n for n, size in zip(map_shape[::-1], explanation.map_size, strict=True)]
    x, y = (
        -(
            ((keys[axis] - explanation.gaussian_centers[:, axis, None]) / explanation.gaussian_widths[:, axis, None])
            ** 2
        )
        / 2
        for axis in (0, 1)
    )
    drawn, shown = np.exp(y[:, :, None] + x[:, None]), np.s_[:, :3, :5]  # without the padding
    assert np.allclose(drawn[shown], explanation.gaussian[shown], atol=1e-4)
    attention = outputs.cross_attentions[layer][0, :, explanation.query]
    assert np.allclose(explanation.attention, attention.reshape(4, *map_shape), atol=1e-6)
    assert np.allclose(explanation.attention.sum((1, 2)), 1, atol=1e-5)
    if padding:  # 96 x 144 pixels are the image
        for values in (explanation.gaussian, explanation.attention):
            assert values[:, 3:].max() == values[:, :, 5:].max() == 0
            assert values[:, :3, :5].max() > 0
        assert explanation.map_size == pytest.approx((150 * 192 / 144, 100 * 160 / 96))
    else:
        assert explanation.map_size == (150, 100)


def failing(module, arguments):
    raise RuntimeError("in the middle")


def test_the_model_is_left_as_it_was(model, image):
    model.train()
    model.model.backbone.eval()

    def state():
        return [
            (module.training, len(module._forward_hooks), getattr(module, "config", model.config)._attn_implementation)
            for module in model.modules()
        ]

    before = state()
    explained(model, image)
    explain_matching(model, SapDetrImageProcessorPil(size=SIZE), image, *TRUTH)
    assert state() == before
    with pytest.raises(ValueError, match="no detection 999"):
        explained(model, image, detection=999)
    hook = model.model.encoder.register_forward_pre_hook(failing)
    with pytest.raises(RuntimeError, match="in the middle"):
        explained(model, image)
    hook.remove()
    assert state() == before
    model.eval()


def test_what_is_not_there_is_refused(model, image):
    for options, message in (
        ({"detection": -1}, "no detection -1"),
        ({"threshold": 1.0}, "No detection has a score above 1.0"),
        ({"query": 20}, "the queries 0 to 19"),
        ({"layer": 3}, "the decoder layers 0 to 2"),
    ):
        with pytest.raises(ValueError, match=message):
            explained(model, image, **options)


def test_half_precision(image):
    explanation = explained(tiny_model().to(torch.bfloat16), image)
    assert np.allclose(explanation.attention.sum((1, 2)), 1, atol=0.02)
    assert explanation.gaussian.max() <= 1


def test_matching_is_the_losss(model, image, monkeypatch):
    matching = explain_matching(model, SapDetrImageProcessorPil(size=SIZE), image, *TRUTH)
    seen = []
    match = loss_sap_detr.match_queries
    monkeypatch.setattr(loss_sap_detr, "match_queries", lambda *given: seen.append(match(*given)) or seen[-1])
    coco = [
        {"bbox": [x1, y1, x2 - x1, y2 - y1], "category_id": index}
        for (x1, y1, x2, y2), index in zip(*TRUTH, strict=True)
    ]
    processor = SapDetrImageProcessorPil(size=SIZE)
    inputs = processor(images=[image], annotations=[{"image_id": 1, "annotations": coco}], return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    assert matching.true_labels == ["b", "e", "b"]
    assert matching.queries.shape == (3, 3)
    for layer, ((queries, boxes),) in enumerate(seen[0]):
        assert {(matching.queries[layer, box], box) for box in range(3)} == set(
            zip(queries.tolist(), boxes.tolist(), strict=True)
        )
    scale = np.array([150, 100], dtype=np.float32)
    assert np.allclose(matching.points[-1], outputs.pred_points[0].numpy()[matching.queries[-1]] * scale, atol=1e-3)
    inside = (matching.points >= matching.cells[..., :2] - 1e-3) & (matching.points <= matching.cells[..., 2:] + 1e-3)
    assert inside.all()


def test_a_model_without_gaussian_is_refused(image):
    with pytest.raises(ValueError, match="`side_directed_gaussian` is off"):
        explained(tiny_model(side_directed_gaussian=False), image)


def test_matching_without_boxes_and_of_unknown_classes(model, image):
    matching = explain_matching(model, SapDetrImageProcessorPil(size=SIZE), image, [], [])
    assert matching.queries.shape == (3, 0)
    assert figures.draw_matching(matching).mode == "RGB"
    with pytest.raises(ValueError, match="class label 6"):
        explain_matching(model, SapDetrImageProcessorPil(size=SIZE), image, [[0, 0, 10, 10]], [6])


def test_heat_lies_where_its_token_is():
    heat = np.zeros((4, 5), dtype=np.float32)
    heat[1, 3] = 1
    values = figures.heat_over_image(heat, (100, 80), (100, 80))
    assert values.shape == (80, 100)
    assert np.unravel_index(values.argmax(), values.shape) == pytest.approx((30, 70), abs=1)
    # The map covers twice the image's width: the same token lies beyond it, another at twice its column.
    assert figures.heat_over_image(heat, (50, 80), (100, 80)).max() < 0.5
    values = figures.heat_over_image(heat, (80, 80), (100, 80))
    assert np.unravel_index(values.argmax(), values.shape) == pytest.approx((30, 70), abs=1)
    assert figures.heat_over_image(np.ones((4, 5)), (33, 17), (40, 20)) == pytest.approx(1)
    glowing = figures.blend_heat(Image.new("RGB", (100, 80), "white"), values.repeat(2, 0)[:80, :80][:, :1] * 0)
    assert np.ptp(np.asarray(glowing)) == 0


def test_figures_draw_points_at_their_place(model, image):
    explanation = explained(model, image, query=14)  # inside the picture, whose edge would cut the mark
    picture = figures.draw_sides(explanation)
    scale = 2 * figures.PANEL_SIDE * figures.DPI / 150
    place = explanation.points[-1] * scale + [figures.GAP * figures.DPI, figures.TITLE_HEIGHT * figures.DPI]
    color = np.array([value * 255 for value in figures._color(explanation.label)])
    pixels = np.asarray(picture, dtype=float)
    x, y = place.round().astype(int)
    assert np.abs(pixels[y - 1 : y + 2, x - 1 : x + 2] - color).max() < 40


def test_every_figure(model, image):
    explanation = explained(model, image)
    for name in ("explanation", "reference_points", "sides", "layers", "gaussian", "attention"):
        picture = getattr(figures, f"draw_{name}")(explanation)
        assert picture.mode == "RGB"
        assert min(picture.size) > 150
        assert np.asarray(picture).std() > 10, name
    other = explained(model, image, detection=1)
    assert figures.draw_gaussian(other).tobytes() != figures.draw_gaussian(explanation).tobytes()


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model(category_ids=[2, 4, 6, 8, 10, 12]).save_pretrained(folder)
    SapDetrImageProcessorPil(size=SIZE).save_pretrained(folder)
    return folder


def run(*arguments):
    return load_script("explain").main([str(argument) for argument in arguments])


def test_script(model_dir, image, tmp_path, capsys):
    image.save(tmp_path / "photo.png")
    truth = {"image_id": 5, "category_id": 4, "bbox": [10, 20, 60, 60], "iscrowd": 0}
    crowd = {"image_id": 5, "category_id": 99, "bbox": [0, 0, 50, 50], "iscrowd": 1}
    images = [{"id": 5, "file_name": "sub/photo.png"}, {"id": 6, "file_name": "other.png"}]
    (tmp_path / "val.json").write_text(json.dumps({"images": images, "annotations": [truth, crowd]}))
    output = tmp_path / "out"
    options = ["--output", output, "--threshold", 0.01]
    assert run(model_dir, tmp_path / "photo.png", *options, "--annotations", tmp_path / "val.json") == 0
    assert "detection 0: " in capsys.readouterr().out
    names = ["attention", "explanation", "gaussian", "layers", "matching", "reference_points", "sides"]
    assert sorted(path.stem for path in output.glob("*.png")) == names
    numbers = json.loads((output / "explanation.json").read_text())
    assert len(numbers["points"]) == 3
    assert numbers["matching"]["true_boxes"] == [[10, 20, 70, 80]]
    assert run(model_dir, tmp_path / "photo.png", *options) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(model_dir, tmp_path / "photo.png", *options, "--overwrite", "--query", 3) == 0
    assert json.loads((output / "explanation.json").read_text())["query"] == 3
    assert not (output / "matching.png").exists()


def test_script_refuses_what_it_cannot_use(model_dir, image, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    image.save(tmp_path / "photo.png")
    (tmp_path / "val.json").write_text(json.dumps({"images": [{"id": 1, "file_name": "b.png"}], "annotations": []}))
    (tmp_path / "bad.json").write_text('{"images": 3}')
    photo = tmp_path / "photo.png"
    for arguments, message in (
        ((model_dir, tmp_path / "absent.png"), "absent.png"),
        ((tmp_path, photo), "no config.json"),
        ((model_dir, photo, "--device", "cuda"), "device is cuda, but PyTorch finds no CUDA device"),
        ((model_dir, photo, "--threshold", 1), "No detection has a score above"),
        ((model_dir, photo, "--annotations", tmp_path / "val.json"), "lists 0 images named photo.png"),
        ((model_dir, photo, "--annotations", tmp_path / "bad.json"), "is not COCO JSON"),
        ((model_dir, photo, "--annotations", tmp_path / "none.json"), "none.json"),
    ):
        assert run(*arguments, "--output", tmp_path / "out") == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
