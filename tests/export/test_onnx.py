"""Export to ONNX: the same numbers as torch for any batch and size, with padding; the example; int8; evaluation."""

import contextlib
import io
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from absent_packages import run_without
from PIL import Image
from project_scripts import load_script
from timm.layers import Conv2dSame
from tiny_model import tiny_inputs, tiny_model
from torch.export import Dim

from benchmarks import evaluate_onnx
from benchmarks.onnx_evaluation import evaluate_exported, result_table
from sap_detr_hf import SapDetrForObjectDetection, SapDetrImageProcessorPil
from sap_detr_hf.demo.digits import make_digits
from sap_detr_hf.export.onnx import (
    INPUT_NAMES,
    OUTPUT_NAMES,
    ExportError,
    OnnxGraph,
    compare_with_torch,
    difference_table,
    export_onnx,
    padded_noise,
)
from sap_detr_hf.export.same_padding import onnx_translations, replace_same_convolutions
from sap_detr_hf.export.session import OnnxDetector, open_session
from sap_detr_hf.inference.detector import detect_with_points
from sap_detr_hf.model.image_files import open_image

onnx = pytest.importorskip("onnx")

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "predict_onnx.py"
NAMES = [str(digit) for digit in range(10)]
SIZE = {"shortest_edge": 96, "longest_edge": 160}

# Runs a script in a process where the named packages cannot be imported.
WITHOUT = """
import runpy, sys
for name in ("torch", "torchvision", "transformers", "sap_detr_hf", "scipy"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("onnx") / "model"
    fields = {"id2label": dict(enumerate(NAMES)), "num_labels": 10, "category_ids": list(range(1, 11))}
    model = tiny_model(encoder_layers=1, decoder_layers=2, **fields)
    with torch.no_grad():
        model.class_heads[-1].layers[-1].weight *= 4  # scores that differ
    model.save_pretrained(directory)
    SapDetrImageProcessorPil(size=SIZE).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def exported(model_directory):
    """The files of `export_onnx.py --int8`, and what it printed."""
    path = model_directory.parent / "tiny.onnx"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert load_script("export").main([str(model_directory), str(path), "--int8"]) == 0
    return SimpleNamespace(path=path, int8=path.with_suffix(".int8.onnx"), printed=printed.getvalue())


@pytest.fixture(scope="module")
def model(model_directory):
    return SapDetrForObjectDetection.from_pretrained(model_directory).eval()


def test_command_prints_the_differences_it_checked(exported):
    rows = exported.printed.split("The same with int8")[0].splitlines()
    assert sum(row.startswith(("| 1 |", "| 3 |")) for row in rows) == 6
    assert "tiny.onnx: 0." in exported.printed


@pytest.mark.parametrize("size", [(96, 128), (33, 65), (160, 97)])
def test_same_as_torch_for_other_batches_and_sizes(exported, model, size):
    for found in compare_with_torch(model, exported.path, batch_sizes=(1, 4), sizes=(size,)):
        assert max(found.largest.values()) < 1e-4, difference_table([found])


def test_same_as_torch_on_a_single_token(exported, model):
    [found] = compare_with_torch(model, exported.path, batch_sizes=(2,), sizes=((32, 32),))
    assert max(found.largest.values()) < 1e-4


def test_padding_is_seen(exported):
    pixel_values, pixel_mask = tiny_inputs(((96, 128), (64, 96)))
    session = open_session(exported.path)
    masks = (pixel_mask.numpy(), np.ones_like(pixel_mask.numpy()))
    masked, unmasked = (
        session.run(["logits"], {"pixel_values": pixel_values.numpy(), "pixel_mask": m})[0] for m in masks
    )
    assert np.abs(masked[0] - unmasked[0]).max() < 1e-4
    assert np.abs(masked[1] - unmasked[1]).max() > 1e-2


def test_names_axes_and_metadata(exported):
    session = open_session(exported.path)
    assert tuple(i.name for i in session.get_inputs()) == INPUT_NAMES
    assert tuple(o.name for o in session.get_outputs()) == OUTPUT_NAMES
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert session.get_inputs()[1].shape == ["batch", "height", "width"]
    for path in (exported.path, exported.int8):
        metadata = open_session(path).get_modelmeta().custom_metadata_map
        assert json.loads(metadata["image_processor"])["size"] == SIZE
        assert {key: json.loads(metadata[key]) for key in ("model_type", "id2label", "category_ids")} == {
            "model_type": "sap_detr",
            "id2label": {str(i): name for i, name in enumerate(NAMES)},
            "category_ids": list(range(1, 11)),
        }


def test_file_says_nothing_of_this_machine(exported):
    for path in (exported.path, exported.int8):
        content = path.read_bytes()
        assert str(ROOT).encode() not in content
        assert b"site-packages" not in content


def test_export_that_differs_is_refused(exported, model, tmp_path, monkeypatch):
    stored = SimpleNamespace(
        model=SimpleNamespace(metadata_props={}), save=lambda path, **_: shutil.copy(exported.path, path)
    )
    monkeypatch.setattr("sap_detr_hf.export.onnx._traced", lambda _: stored)
    export_onnx(model, SapDetrImageProcessorPil(size=SIZE), tmp_path / "same.onnx")
    with torch.no_grad():
        other = SapDetrForObjectDetection(model.config).eval()
    with pytest.raises(ExportError, match=r"differs from torch's by .* nothing was written"):
        export_onnx(other, SapDetrImageProcessorPil(size=SIZE), tmp_path / "other.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["same.onnx"]


def test_export_refuses_half_precision(model, tmp_path):
    half = SapDetrForObjectDetection(model.config).to(torch.bfloat16)
    with pytest.raises(ValueError, match="Only a float32 model"):
        export_onnx(half, SapDetrImageProcessorPil(), tmp_path / "half.onnx")


def test_commands_state_what_is_wrong(tmp_path, capsys):
    assert load_script("export").main([str(tmp_path), str(tmp_path / "out.bin")]) == 2
    assert "must end in .onnx" in capsys.readouterr().err
    assert load_script("export").main([str(tmp_path), str(tmp_path / "out.onnx")]) == 2
    assert "has no config.json" in capsys.readouterr().err
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    assert evaluate_onnx.main([str(tmp_path / "broken.onnx"), "--size", "64", "64"]) == 2
    assert "cannot be loaded as an ONNX model" in capsys.readouterr().err
    assert evaluate_onnx.main([str(tmp_path / "broken.onnx")]) == 2
    assert "image size must be given" in capsys.readouterr().err


def run_example(*arguments):
    command = [sys.executable, "-c", WITHOUT, EXAMPLE, *arguments]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(("size", "orientation"), [((150, 100), 1), ((90, 300), 6), ((200, 131), 3)])
def test_example_finds_what_torch_finds(exported, model, tmp_path, size, orientation):
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)).resize(size)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "photo.jpg", exif=exif)
    image = open_image(tmp_path / "photo.jpg")
    processor = SapDetrImageProcessorPil(size=SIZE)
    scores = detect_with_points(model, processor, image, threshold=0).scores
    threshold = float(scores[19:21].mean())  # between the 20th and the 21st detection
    expected = detect_with_points(model, processor, image, threshold)
    assert len(expected.labels) == 20

    finished = run_example(exported.path, tmp_path / "photo.jpg", "--threshold", threshold)
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout)
    assert [one["label"] for one in found] == expected.labels
    np.testing.assert_allclose([one["score"] for one in found], expected.scores, atol=1e-5)
    np.testing.assert_allclose([[*one["box"].values()] for one in found], expected.boxes, atol=1e-2)
    np.testing.assert_allclose([[*one["point"].values()] for one in found], expected.points, atol=1e-2)


def test_example_states_what_is_wrong(exported, tmp_path):
    finished = run_example(exported.path, EXAMPLE)
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: cannot identify image file")
    finished = run_example(tmp_path / "absent.onnx", EXAMPLE)
    assert finished.returncode == 2
    assert "No such file" in finished.stderr


def test_int8_is_smaller_and_close(exported, model):
    assert exported.int8.stat().st_size < exported.path.stat().st_size
    operations = Counter(node.op_type for node in onnx.load(exported.int8).graph.node)
    assert operations["MatMulInteger"] > 20
    assert not operations["ConvInteger"]
    for found in compare_with_torch(model, exported.int8, sizes=((96, 128),)):
        assert 1e-5 < found.largest["pred_boxes"] < 0.2


def test_evaluation_of_the_files(exported, model_directory, model, tmp_path, capsys):
    make_digits(tmp_path / "digits", train=1, val=3, size=(96, 96))
    output = tmp_path / "onnx.json"
    arguments = [str(model_directory), str(exported.path), str(exported.int8), "--data", str(tmp_path / "digits")]
    assert evaluate_onnx.main([*arguments, "--rounds", "2", "--json", str(output)]) == 0
    results = json.loads(output.read_text())
    assert [one["name"] for one in results["models"]] == ["model", "tiny.onnx", "tiny.int8.onnx"]
    assert (results["setting"]["images"], results["setting"]["height"]) == (3, 96)
    torch_result, onnx_result, _ = (one["metrics"] for one in results["models"])
    assert torch_result == pytest.approx(onnx_result, abs=1e-3, nan_ok=True)
    assert str(tmp_path) not in output.read_text()
    assert "| tiny.int8.onnx |" in capsys.readouterr().out


def test_size_and_latency_beside_the_first_model(exported, model_directory, model, monkeypatch):
    seconds = [[4.0, 6.0, 2.0], [1.0, 2.0, 4.0]]  # ratios of the rounds: 4, 3, 0.5
    monkeypatch.setattr("benchmarks.onnx_evaluation.paired_seconds", lambda actions, rounds: seconds)
    torch_model, onnx_model = evaluate_exported([str(model_directory), str(exported.path)], size=(96, 128))["models"]
    assert (torch_model["seconds"], torch_model["speedup"]) == (4, 1)
    assert (onnx_model["seconds"], onnx_model["speedup"]) == (2, 3)
    assert torch_model["megabytes"] == pytest.approx(4 * model.num_parameters() / 1e6, rel=0.02)
    assert onnx_model["megabytes"] == round(exported.path.stat().st_size / 1e6, 2)
    shown = {**onnx_model, "metrics": {"AP": 0.5, "AP50": 0.75, "AP75": 0.25}}
    row = f"| tiny.onnx | {onnx_model['megabytes']:.1f} | 2000.0 | 3.00 | 50.0 | 75.0 | 25.0 |"
    assert result_table([shown]).splitlines()[2:] == [row]


def test_detector_answers_as_the_model(exported, model):
    detector = OnnxDetector(exported.path)
    assert detector.config.id2label == model.config.id2label
    assert detector.image_processor.size == SapDetrImageProcessorPil(size=SIZE).size
    pixel_values, pixel_mask = padded_noise(2, 96, 128)
    with torch.no_grad():
        expected = model(pixel_values=pixel_values, pixel_mask=pixel_mask)
    found = detector(pixel_values, pixel_mask)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.pred_boxes, expected.pred_boxes, atol=1e-4, rtol=0)


def test_sessions_leave_the_cores_to_what_is_measured_next(exported):
    options = open_session(exported.path).get_session_options()
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


@pytest.mark.parametrize("gaussian", [True, False])
def test_whole_graph_with_dynamic_shapes(model, gaussian):
    model = model if gaussian else tiny_model(side_directed_gaussian=False)
    batch, height, width = Dim.DYNAMIC, Dim.DYNAMIC, Dim.DYNAMIC
    dynamic = {"pixel_values": {0: batch, 2: height, 3: width}, "pixel_mask": {0: batch, 1: height, 2: width}}
    graph = OnnxGraph(model).eval()
    with torch.no_grad():
        program = torch.export.export(graph, padded_noise(2, 150, 200), dynamic_shapes=dynamic, strict=True).module()
        for inputs in (padded_noise(1, 96, 128), padded_noise(3, 131, 70)):
            for found, expected in zip(program(*inputs), graph(*inputs), strict=True):
                torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_convolutions_with_same_padding(tmp_path):
    torch.manual_seed(0)
    layers = [Conv2dSame(3, 4, 3, stride=2), Conv2dSame(4, 4, 5, stride=2, groups=2), Conv2dSame(4, 5, 3, bias=False)]
    original = torch.nn.Sequential(*layers).eval()
    replaced = torch.nn.Sequential(*layers).eval()
    replace_same_convolutions(replaced)
    assert not any(isinstance(module, Conv2dSame) for module in replaced.modules())
    program = torch.onnx.export(
        replaced,
        (torch.randn(2, 3, 30, 41),),
        dynamo=True,
        verbose=False,
        input_names=["images"],
        dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
        custom_translation_table=onnx_translations(),
    )
    program.save(tmp_path / "same.onnx")
    session = open_session(tmp_path / "same.onnx")
    for height, width in ((30, 41), (33, 32), (31, 35), (8, 5)):
        images = torch.randn(1, 3, height, width)
        expected = original(images)
        torch.testing.assert_close(replaced(images), expected)
        [found] = session.run(None, {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-5, rtol=1e-5)


def test_absent_packages_are_named(tmp_path):
    program = """
from sap_detr_hf.export.session import open_session
try:
    open_session("model.onnx")
except ImportError as error:
    print(error)
"""
    printed = run_without(["onnxruntime"], program, tmp_path)
    assert "ONNX files need the package onnxruntime: pip install sap-detr-hf[onnx]." in printed
