"""Exports: the same numbers as torch for any batch and size, with padding; int8; predict, evaluate, the example."""

import contextlib
import inspect
import io
import json
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from timm.layers import Conv2dSame
from tiny_model import tiny_inputs, tiny_model
from torch.export import Dim

from sap_detr_cli.main import main
from sap_detr_hf import SapDetrForObjectDetection, SapDetrImageProcessorPil
from sap_detr_hf.demo.digits import make_digits
from sap_detr_hf.export import exported as exported_files
from sap_detr_hf.export.comparison import ExportError, compare_with_torch, difference_table
from sap_detr_hf.export.exported import ExportedModel, open_session
from sap_detr_hf.export.graph import INPUT_NAMES, OUTPUT_NAMES, DetectorGraph, padded_noise, traced_program
from sap_detr_hf.export.int8 import agreement, require_agreement
from sap_detr_hf.export.packages import require_packages
from sap_detr_hf.export.same_padding import onnx_translations, replace_same_convolutions
from sap_detr_hf.inference.detector import detect_with_points, prepare_batch
from sap_detr_hf.inference.exports import exported_file
from sap_detr_hf.model.configuration_sap_detr import CORRECTED
from sap_detr_hf.model.image_files import open_image

onnx = pytest.importorskip("onnx")
openvino = pytest.importorskip("openvino")

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "predict_onnx.py"
NAMES = [str(digit) for digit in range(10)]
SIZE = {"shortest_edge": 96, "longest_edge": 160}
FLOAT32, INT8 = ("tiny.onnx", "tiny.xml", "tiny.pt2"), ("int8.onnx", "int8.xml")

# Runs a script in a process where the named packages cannot be imported.
WITHOUT = """
import runpy, sys
for name in ("torch", "torchvision", "transformers", "sap_detr_hf", "scipy"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


TORCH_EXPORT = torch.onnx.export  # while `traced_once` gives each model's first export again


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
def traced_once():
    """Tracing, the conversion to ONNX and opening a .pt2 file take most of the time: each is done once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(exported_files.OPENERS, ".pt2", cache(exported_files.OPENERS[".pt2"]))
        patch.setattr("sap_detr_hf.export.run.traced_program", once(traced_program))
        patch.setattr(torch.onnx, "export", once(torch.onnx.export))
        yield


def once(function):
    results = []

    def first_result(*args, **kwargs):
        if not results:
            results.append(function(*args, **kwargs))
        return results[0]

    return first_result


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    make_digits(folder, train=1, val=4, size=(96, 128))
    return folder


@pytest.fixture(scope="module")
def exported(model_directory, digits, traced_once):
    """The files of `sap-detr export` by name, and what it printed of each."""
    files, printed = {}, {}
    int8 = ["--int8", "--calibrate", str(digits / "images" / "val")]
    for name, options in {"tiny.onnx": [], "tiny.xml": [], "tiny.pt2": [], "int8.onnx": int8, "int8.xml": int8}.items():
        files[name] = model_directory.parent / name
        with contextlib.redirect_stdout(io.StringIO()) as output:
            assert main(["export", str(model_directory), str(files[name]), *options]) == 0
        printed[name] = output.getvalue()
    return SimpleNamespace(files=files, printed=printed, path=files["tiny.onnx"])


@pytest.fixture(scope="module")
def runnable(exported):
    """The float32 files, open."""
    return {name: ExportedModel(exported.files[name], trust_pt2=True) for name in FLOAT32}


@pytest.fixture(scope="module")
def model(model_directory):
    return SapDetrForObjectDetection.from_pretrained(model_directory).eval()


@pytest.mark.parametrize("name", [*FLOAT32, *INT8])
def test_command_prints_the_differences_it_checked(exported, name):
    rows = exported.printed[name].splitlines()
    assert sum(row.startswith(("| 1 |", "| 3 |")) for row in rows) == 6
    assert "| 1 | 143 x 96 |" in exported.printed[name], "a photograph's size"
    assert re.search(rf"{name}: \d\.\d MB", exported.printed[name])
    assert ("int8, calibrated on 4 pictures" in exported.printed[name]) == (name in INT8)


@pytest.mark.parametrize("name", FLOAT32)
@pytest.mark.parametrize("size", [(96, 128), (33, 65), (160, 97)])
def test_same_as_torch_for_other_batches_and_sizes(runnable, model, name, size):
    for found in compare_with_torch(model, runnable[name], batch_sizes=(1, 4), sizes=(size,)):
        assert max(found.largest.values()) < 1e-4, difference_table([found])


@pytest.mark.parametrize("name", ["tiny.onnx", "tiny.xml"])
def test_same_as_torch_on_a_single_token(runnable, model, name):
    [found] = compare_with_torch(model, runnable[name], batch_sizes=(2,), sizes=((32, 32),))
    assert max(found.largest.values()) < 1e-4


def test_torch_program_says_which_sizes_it_takes(runnable):
    with pytest.raises(ValueError, match=r"tiny.pt2 cannot run images of 32 x 32 pixels: .*33"):
        runnable["tiny.pt2"](*padded_noise(1, 32, 32))


@torch.no_grad()
def test_corrected_rules_with_groups_and_denoising_are_traced():
    """The graph from which all formats are written: the same as torch for any batch and size."""
    model = tiny_model(encoder_layers=1, decoder_layers=2, **CORRECTED, num_groups=2, denoising_pairs=3)
    traced = traced_program(model).module()
    for batch_size, height, width in ((1, 97, 64), (3, 160, 97)):
        inputs = padded_noise(batch_size, height, width)
        expected = model(*inputs)
        for name, found in zip(OUTPUT_NAMES, traced(*inputs), strict=True):
            torch.testing.assert_close(found, expected[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", FLOAT32)
def test_padding_is_seen(runnable, name):
    pixel_values, pixel_mask = tiny_inputs(((96, 128), (64, 96)))
    masked, unmasked = (runnable[name](pixel_values, mask).logits for mask in (pixel_mask, None))
    assert (masked[0] - unmasked[0]).abs().max() < 1e-4
    assert (masked[1] - unmasked[1]).abs().max() > 1e-2


def test_names_axes_and_metadata(exported):
    session = open_session(exported.path)
    assert tuple(i.name for i in session.get_inputs()) == INPUT_NAMES
    assert tuple(o.name for o in session.get_outputs()) == OUTPUT_NAMES
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert session.get_inputs()[1].shape == ["batch", "height", "width"]
    for name in ("tiny.onnx", "int8.onnx"):
        metadata = open_session(exported.files[name]).get_modelmeta().custom_metadata_map
        assert json.loads(metadata["image_processor"])["size"] == SIZE
        assert {key: json.loads(metadata[key]) for key in ("model_type", "id2label", "category_ids")} == {
            "model_type": "sap_detr",
            "id2label": {str(i): name for i, name in enumerate(NAMES)},
            "category_ids": list(range(1, 11)),
        }


def test_openvino_computes_in_float32(runnable):
    """By itself, it would in bfloat16 on a processor that can."""
    compiled = inspect.getclosurevars(runnable["tiny.xml"].run).nonlocals["compiled"]
    assert compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32


def test_files_say_nothing_of_this_machine(exported):
    written = [file for file in exported.path.parent.iterdir() if file.is_file()]
    assert {file.name for file in written} == {*FLOAT32, *INT8, "tiny.bin", "int8.bin"}
    for file in written:
        content = file.read_bytes()
        assert str(ROOT).encode() not in content, file
        assert b"site-packages" not in content, file


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2"])
def test_export_that_differs_is_refused(exported, model_directory, model, tmp_path, capsys, suffix):
    with torch.no_grad():
        other = SapDetrForObjectDetection(model.config).eval()  # the shared trace is `model`'s
    other.save_pretrained(tmp_path / "other")
    SapDetrImageProcessorPil(size=SIZE).save_pretrained(tmp_path / "other")
    assert main(["export", str(tmp_path / "other"), str(tmp_path / f"other{suffix}")]) == 1
    assert re.search(r"logits differs from torch's by \d.* nothing was written", capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_int8_that_finds_other_objects_is_refused(model, digits):
    processor = SapDetrImageProcessorPil(size=SIZE)
    pictures = [prepare_batch(processor, open_image(file)) for file in sorted((digits / "images/val").iterdir())]
    assert agreement(model, model, processor, pictures) == 1
    with torch.no_grad():
        share = agreement(model, SapDetrForObjectDetection(model.config).eval(), processor, pictures)
    with pytest.raises(ExportError, match=r"in int8 the model has \d+% of torch's best .* nothing was written"):
        require_agreement(share)


def test_export_refuses_half_precision(model):
    half = SapDetrForObjectDetection(model.config).to(torch.bfloat16)
    with pytest.raises(ValueError, match="Only a float32 model"):
        traced_program(half)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["out.bin"], "must end in .onnx, .xml or .pt2"),
        (["out.onnx", "--format", "openvino"], "does not end in .xml"),
        (["absent/out.onnx"], "must lie in a directory that exists"),
        (["out.onnx", "--int8"], "--int8 and --calibrate PICTURES go together"),
        (["out.pt2", "--int8", "--calibrate", "."], "--int8 is for ONNX and OpenVINO"),
        (["out.onnx", "--int8", "--calibrate", "."], "no images in this folder"),
    ],
)
def test_export_states_what_is_wrong(model_directory, tmp_path, monkeypatch, capsys, arguments, reason):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(model_directory), *arguments]) == 2
    assert reason in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_prediction_states_what_is_wrong(exported, digits, tmp_path, capsys):
    def reason(model, *options):
        code = main(["predict", str(model), str(digits / "images"), "--output", str(tmp_path / "out"), *options])
        assert code == 2
        return capsys.readouterr().err

    for name, kind in {"a.onnx": "an ONNX", "a.xml": "an OpenVINO", "a.pt2": "a torch.export"}.items():
        (tmp_path / name).write_bytes(b"no model")
        assert f"{name} cannot be loaded as {kind} model" in reason(tmp_path / name, "--trust-pt2")
    assert "can hold any code" in reason(exported.files["tiny.pt2"])
    assert "runs on the CPU in float32" in reason(exported.path, "--dtype", "bfloat16")
    assert "there is no such file" in reason(tmp_path / "absent.onnx")
    foreign = onnx.load(exported.path)
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    assert "does not say how to prepare images" in reason(tmp_path / "foreign.onnx")


@pytest.mark.parametrize("name", [*FLOAT32, *INT8])
def test_predicts_and_evaluates_as_the_saved_model(exported, of_the_saved_model, digits, tmp_path, name):
    metrics, detections = predicted_and_evaluated(exported.files[name], digits, tmp_path)
    expected_metrics, expected = of_the_saved_model
    assert len(detections) == len(expected) > 100
    if name in INT8:  # its AP is measured in `benchmarks`: a model of random weights has none
        assert 1e-5 < difference(detections, expected, "score") < 0.1
        return
    assert metrics == pytest.approx(expected_metrics, abs=1e-3)
    assert [one["category_id"] for one in detections] == [one["category_id"] for one in expected]
    assert difference(detections, expected, "score") < 1e-5
    assert difference(detections, expected, "bbox") < 1e-2


@pytest.fixture(scope="module")
def of_the_saved_model(model_directory, digits, tmp_path_factory):
    return predicted_and_evaluated(model_directory, digits, tmp_path_factory.mktemp("saved"))


def predicted_and_evaluated(model, digits, folder):
    """Metrics of `evaluate` and detections of `predict`, best first."""
    model, trust = str(model), ["--trust-pt2"] * str(model).endswith(".pt2")
    options = ["--workers", "0", "--output", str(folder / "evaluation"), *trust]
    assert main(["evaluate", model, str(digits), *options]) == 0
    pictures = str(digits / "annotations" / "instances_val.json")
    options = ["--threshold", "0", "--no-pictures", "--output", str(folder / "predicted"), *trust]
    assert main(["predict", model, pictures, *options]) == 0
    metrics = json.loads((folder / "evaluation" / "results.json").read_text())["metrics"]
    found = json.loads((folder / "predicted" / "predictions.json").read_text())
    return metrics, sorted(found, key=lambda one: (one["image_id"], -one["score"]))


def test_slices_and_annotations_as_the_saved_model(model_directory, exported, digits, tmp_path):
    pytest.importorskip("sahi")
    written = []
    for model in (model_directory, exported.path):
        folder = tmp_path / Path(model).name
        options = ["--slice", "64", "--threshold", "0", "--top-k", "10", "--no-pictures", "--as-annotations", "coco"]
        assert main(["predict", str(model), str(digits / "images/val"), "--output", str(folder), *options]) == 0
        [file] = (folder / "pre_labels" / "annotations").iterdir()
        written.append(json.loads(file.read_text()))
    expected, found = written
    assert found["categories"] == expected["categories"]
    assert len(found["annotations"]) == len(expected["annotations"]) == 4 * 10
    assert difference(found["annotations"], expected["annotations"], "bbox") < 1e-2


def difference(found, expected, key):
    return np.abs(np.array([one[key] for one in found]) - np.array([one[key] for one in expected])).max()


def test_a_folder_with_one_export_names_it(model_directory, exported, tmp_path):
    assert main(["export", str(model_directory), str(tmp_path / "mine"), "--format", "openvino"]) == 0
    assert sorted(file.name for file in (tmp_path / "mine").iterdir()) == ["model.bin", "model.xml"]
    assert exported_file(str(tmp_path / "mine")) == tmp_path / "mine" / "model.xml"
    assert exported_file(str(model_directory)) is None


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


def test_int8_holds_8_bits(exported):
    weights = [each for each in onnx.load(exported.files["int8.onnx"]).graph.initializer if "weight" in each.name]
    operations = Counter(node.op_type for node in onnx.load(exported.files["int8.onnx"]).graph.node)
    assert operations["QuantizeLinear"] > 20
    assert sum(each.data_type == onnx.TensorProto.INT8 for each in weights) > 10
    assert b"FakeQuantize" in exported.files["int8.xml"].read_bytes()
    assert b"FakeQuantize" not in exported.files["tiny.xml"].read_bytes()


def test_sessions_leave_the_cores_to_what_is_measured_next(exported):
    options = open_session(exported.path).get_session_options()
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


@pytest.mark.parametrize("gaussian", [True, False])
def test_whole_graph_with_dynamic_shapes(model, gaussian):
    model = model if gaussian else tiny_model(encoder_layers=1, decoder_layers=2, side_directed_gaussian=False)
    batch, height, width = Dim.DYNAMIC, Dim.DYNAMIC, Dim.DYNAMIC
    dynamic = {"pixel_values": {0: batch, 2: height, 3: width}, "pixel_mask": {0: batch, 1: height, 2: width}}
    graph = DetectorGraph(model).eval()
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
    program = TORCH_EXPORT(
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


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript", "openvino", "nncf"])
def test_absent_packages_are_named(monkeypatch, package):
    what, extra = ("ONNX files need", "onnx") if "onnx" in package else ("OpenVINO models need", "openvino")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError) as raised:
        require_packages(".xml")
    assert str(raised.value) == f"{what} the package {package}: pip install 'sap-detr-hf[{extra}]'."
