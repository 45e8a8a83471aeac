"""A saved directory in use: Auto classes and `pipeline`, in processes of their own, with and without torchvision."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import tiny_inputs, tiny_model
from transformers import AutoConfig, AutoModel, AutoModelForObjectDetection
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # 5.17 exports it with torchvision only
from transformers.utils import is_torchvision_available

import sap_detr_hf

BACKENDS = {"pil": "SapDetrImageProcessorPil"}
if is_torchvision_available():
    BACKENDS["torchvision"] = "SapDetrImageProcessor"

NAMES = ["cat", "dog", "owl", "fox", "bee", "ant"]
COLUMNS, ROWS = 5, 4
WIDTH, HEIGHT = 90, 150  # of the upright photograph
ORIENTATIONS = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}

DETECT = """
import json, sys
import sap_detr_hf
from transformers import pipeline
detector = pipeline("object-detection", model=sys.argv[1])
results = {name: detector(name) for name in sys.argv[2:]}
results["list"] = detector(sys.argv[2:])
scores = sorted(detection["score"] for detection in detector(sys.argv[2]))
results["threshold"] = scores[len(scores) // 2]
results["above threshold"] = detector(sys.argv[2], threshold=results["threshold"])
results["processor"] = type(detector.image_processor).__name__
print(json.dumps(results))
"""

# A `sitecustomize` module: neither the import system nor package metadata knows torchvision.
WITHOUT_TORCHVISION = """
import importlib.machinery, sys

class PathFinder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] == "torchvision" else super().find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, *args, **kwargs):
        return (d for d in super().find_distributions(*args, **kwargs) if d.metadata["Name"] != "torchvision")

sys.meta_path = [PathFinder if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
"""


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory):
    """A model that sees an owl in every cell of the grid, with a score that depends on the image."""
    directory = tmp_path_factory.mktemp("model")
    model = tiny_model(query_grid=[ROWS, COLUMNS], id2label=dict(enumerate(NAMES)))
    decoder = model.model.decoder
    with torch.no_grad():
        # Points stay next to their cells' corners; boxes reach from there over 0.9 of the cell.
        for head in (*decoder.point_heads, *decoder.side_heads):
            head.layers[-1].weight.zero_()
            head.layers[-1].bias.zero_()
        sides = torch.tensor([0.001, 0.001, 0.9 / COLUMNS, 0.9 / ROWS])
        model.model.query_sides.weight.copy_(sides.logit())
        model.class_heads[-1].layers[-1].bias.copy_(torch.tensor([-9.0, -9.0, 2.0, -9.0, -9.0, -9.0]))
    model.save_pretrained(directory)
    size = {"shortest_edge": 96, "longest_edge": 192}
    sap_detr_hf.SapDetrImageProcessorPil(size=size).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Files of one picture: as cameras store it, upright without loss, grey, and grey in three channels."""
    folder = tmp_path_factory.mktemp("photographs")
    red, green = np.meshgrid(np.linspace(0, 255, WIDTH), np.linspace(255, 40, HEIGHT))
    upright = Image.fromarray(np.stack([red, green, (red * green) % 200], axis=-1).astype(np.uint8))
    for orientation, turn in ORIENTATIONS.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        upright.transpose(turn).save(folder / f"camera_{orientation}.jpg", exif=exif, quality=95)
        # What a viewer shows: PIL's `transpose` turns counterclockwise, the opposite turn undoes it.
        back = ORIENTATIONS[{3: 3, 6: 8, 8: 6}[orientation]]
        Image.open(folder / f"camera_{orientation}.jpg").transpose(back).save(folder / f"upright_{orientation}.png")
    upright.convert("L").save(folder / "grey.png")
    upright.convert("L").convert("RGB").save(folder / "grey_rgb.png")
    return folder


def run_detector(model_directory, photographs, python_path) -> dict:
    """Run the pipeline as a user would; nothing may be said on stderr (progress bars are switched off)."""
    files = sorted(path.name for path in photographs.iterdir())
    environment = {**os.environ, "TQDM_DISABLE": "1", "PYTHONPATH": python_path}
    done = subprocess.run(
        [sys.executable, "-c", DETECT, str(model_directory), *files],
        cwd=photographs,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def detections(model_directory, photographs):
    return run_detector(model_directory, photographs, os.environ.get("PYTHONPATH", ""))


@pytest.fixture(scope="module")
def detections_without_torchvision(model_directory, photographs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("without_torchvision")
    (folder / "sitecustomize.py").write_text(WITHOUT_TORCHVISION)
    python_path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    probe = "import importlib.util as u, importlib.metadata as m; print(u.find_spec('torchvision'), m.version('torch'))"
    environment = {**os.environ, "PYTHONPATH": python_path}
    assert subprocess.check_output([sys.executable, "-c", probe], env=environment, text=True).startswith("None ")
    return run_detector(model_directory, photographs, python_path)


@pytest.fixture(params=["detections", "detections_without_torchvision"])
def results(request):
    return request.getfixturevalue(request.param)


# --- pipeline --------------------------------------------------------------------------------------------------------


def expected_boxes(width: int, height: int) -> list[dict]:
    corners = [(column / COLUMNS, row / ROWS) for row in range(ROWS) for column in range(COLUMNS)]
    return [
        {"xmin": x * width, "ymin": y * height, "xmax": (x + 0.9 / COLUMNS) * width, "ymax": (y + 0.9 / ROWS) * height}
        for x, y in corners
    ]


def test_pipeline_finds_named_integer_boxes_in_the_upright_picture(results, photographs):
    for path in photographs.iterdir():
        found = results[path.name]
        assert len(found) == ROWS * COLUMNS
        assert {detection["label"] for detection in found} == {"owl"}
        assert all(0.5 < detection["score"] <= 1 for detection in found)
        found = sorted((d["box"] for d in found), key=lambda box: (round(box["ymin"] / 8), box["xmin"]))
        for box, expected in zip(found, expected_boxes(WIDTH, HEIGHT), strict=True):
            assert all(type(value) is int for value in box.values())
            assert box == pytest.approx(expected, abs=1.5)
            assert 0 <= box["xmin"] < box["xmax"] <= WIDTH
            assert 0 <= box["ymin"] < box["ymax"] <= HEIGHT


def test_pipeline_sees_the_picture_as_a_person_does(results):
    for orientation in ORIENTATIONS:
        assert results[f"camera_{orientation}.jpg"] == results[f"upright_{orientation}.png"]
    assert results["grey.png"] == results["grey_rgb.png"]
    scores = {name: tuple(d["score"] for d in results[name]) for name in ("upright_6.png", "grey.png")}
    assert scores["upright_6.png"] != scores["grey.png"], "the model does not look at the picture"


def test_pipeline_takes_lists_and_a_threshold(results, photographs):
    files = sorted(path.name for path in photographs.iterdir())
    assert results["list"] == [results[name] for name in files]
    best = [d for d in results[files[0]] if d["score"] > results["threshold"]]
    assert 0 < len(best) < ROWS * COLUMNS
    assert results["above threshold"] == best


@pytest.mark.skipif("torchvision" not in BACKENDS, reason="torchvision is not installed")
def test_pipeline_is_the_same_without_torchvision(detections, detections_without_torchvision):
    assert detections["processor"] == "SapDetrImageProcessor"
    assert detections_without_torchvision["processor"] == "SapDetrImageProcessorPil"
    for name in ("camera_6.jpg", "grey.png"):
        ours, theirs = (
            sorted(d[name], key=lambda d: list(d["box"].values())) for d in (detections, detections_without_torchvision)
        )
        assert [d["box"] for d in ours] == [d["box"] for d in theirs]
        assert [d["score"] for d in ours] == pytest.approx([d["score"] for d in theirs], abs=0.01)


# --- Auto classes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_auto_classes(model_directory, photographs, backend):
    config = AutoConfig.from_pretrained(model_directory)
    assert type(config) is sap_detr_hf.SapDetrConfig
    assert list(config.id2label.values()) == NAMES
    processor = AutoImageProcessor.from_pretrained(model_directory, backend=backend)
    assert type(processor).__name__ == BACKENDS[backend]
    base = AutoModel.from_pretrained(model_directory).eval()
    assert type(base) is sap_detr_hf.SapDetrModel
    model = AutoModelForObjectDetection.from_pretrained(model_directory).eval()
    assert type(model) is sap_detr_hf.SapDetrForObjectDetection

    picture = Image.open(photographs / "camera_6.jpg")
    inputs = processor(images=picture, return_tensors="pt")
    assert inputs.pixel_values.shape == (1, 3, 160, 96)
    with torch.no_grad():
        outputs = model(**inputs)
        assert torch.equal(base(**inputs).last_hidden_state, outputs.last_hidden_state)
    (found,) = processor.post_process_object_detection(outputs, threshold=0.5, target_sizes=[(HEIGHT, WIDTH)])
    assert set(found["labels"].tolist()) == {NAMES.index("owl")}
    assert len(found["boxes"]) == ROWS * COLUMNS


def test_another_number_of_labels_gives_a_fresh_head(model_directory):
    trained = AutoModelForObjectDetection.from_pretrained(model_directory)
    fresh = AutoModelForObjectDetection.from_pretrained(model_directory, num_labels=3, ignore_mismatched_sizes=True)
    assert list(fresh.config.id2label) == [0, 1, 2]
    for head in fresh.class_heads:
        assert head.layers[-1].weight.shape == (3, 32)
        assert head.layers[-1].weight.abs().max() > 0
        assert torch.allclose(head.layers[-1].bias, torch.tensor(-math.log(99)))
    replaced = {f"class_heads.{i}.layers.2.{name}" for i in (0, 1) for name in ("weight", "bias")}
    kept = trained.state_dict().keys() - replaced
    assert all(torch.equal(fresh.state_dict()[name], trained.state_dict()[name]) for name in kept)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForObjectDetection.from_pretrained(model_directory, num_labels=3)


@pytest.mark.parametrize(
    ("classes", "category_ids"),
    [
        ({}, [1, 3, 5, 7, 9, 11]),
        ({"num_labels": 6}, [1, 3, 5, 7, 9, 11]),
        ({"num_labels": 3}, None),
        ({"num_labels": 3, "category_ids": [4, 5, 6]}, [4, 5, 6]),
        ({"id2label": {0: "car", 1: "bus"}}, None),
        ({"id2label": {0: "car", 1: "bus"}, "category_ids": [4, 5]}, [4, 5]),
    ],
    ids=str,
)
def test_category_ids_go_with_the_classes(tmp_path, classes, category_ids):
    tiny_model(category_ids=[1, 3, 5, 7, 9, 11]).save_pretrained(tmp_path)
    model = AutoModelForObjectDetection.from_pretrained(tmp_path, ignore_mismatched_sizes=True, **classes)
    assert model.config.category_ids == category_ids
    assert model.config.num_labels == len(category_ids or classes.get("id2label") or range(3))
    assert AutoConfig.from_pretrained(tmp_path, **classes).category_ids == category_ids
    model.save_pretrained(tmp_path / "again")
    assert AutoConfig.from_pretrained(tmp_path / "again").category_ids == category_ids


# --- Attention implementations ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [None, "sdpa", "eager", {"": "sdpa", "backbone_config": "eager"}], ids=str)
def test_attention_implementation_is_a_plain_string(model_directory, asked):
    chosen = {} if asked is None else {"attn_implementation": asked}
    model = AutoModelForObjectDetection.from_pretrained(model_directory, **chosen).eval()
    used = "eager" if asked == "eager" else "sdpa"
    assert model.config._attn_implementation == used
    assert model.model.encoder.layers[0].self_attn.config._attn_implementation == used
    assert model.model.backbone.config._attn_implementation == "eager"  # a ResNet has no attention
    rebuilt = AutoModelForObjectDetection.from_config(model.config, **chosen)
    assert rebuilt.config._attn_implementation == used

    with torch.no_grad():
        before = model(*tiny_inputs()).logits
        for other in ("eager", "sdpa", "eager"):
            model.set_attn_implementation(other)
            assert model.config._attn_implementation == other
            assert (model(*tiny_inputs()).logits - before).abs().max() < 1e-4


@pytest.mark.parametrize("unknown", ["flash_attention_2", "flex_attention", "fastest"])
def test_attention_without_a_place_for_the_gaussian_is_refused(model_directory, unknown):
    with pytest.raises(ValueError, match=r"does not support|is not supported"):
        AutoModelForObjectDetection.from_pretrained(model_directory, attn_implementation=unknown)


def test_a_pipeline_batches_two_sizes_where_all_are_padded_to_one(model_directory):
    from transformers import pipeline
    from transformers.image_utils import SizeDict

    detector = pipeline("object-detection", model=str(model_directory))
    detector.image_processor.pad_size = SizeDict(height=192, width=192)
    pictures = [Image.new("RGB", size, color) for size, color in (((60, 40), "red"), ((40, 60), "green"))]
    single = [detector(picture, threshold=0.01) for picture in pictures]
    batched = detector(pictures, threshold=0.01, batch_size=2)
    assert all(single)
    for alone, together in zip(single, batched, strict=True):
        assert [each["box"] for each in together] == [each["box"] for each in alone]
        scores = [each["score"] for each in alone]
        assert [each["score"] for each in together] == pytest.approx(scores, abs=1e-5)
