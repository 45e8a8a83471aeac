"""A model that carries its code: loaded in processes without this package, and with it."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from absent_packages import run_without
from PIL import Image
from project_scripts import load_script
from tiny_dino import tiny_dino
from tiny_model import tiny_model
from transformers import AutoConfig, AutoModel, AutoModelForObjectDetection, pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # 5.17 exports it with torchvision only
from transformers.utils import is_torchvision_available

import sap_detr_hf
from sap_detr_hf import SapDetrConfig
from sap_detr_hf.hub.remote_code import add_remote_code, code_files
from sap_detr_hf.model.configuration_sap_detr import CORRECTED

LOAD = """
import json, sys
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoModelForObjectDetection, pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor

directory, output, name, *backends = sys.argv[1:]
try:
    AutoModelForObjectDetection.from_pretrained(directory)
except ValueError as error:
    assert "trust_remote_code" in str(error), error
else:
    raise AssertionError("code of the directory ran without the user's word")

def load(auto_class, **kwargs):
    return auto_class.from_pretrained(directory, trust_remote_code=True, **kwargs)

model = load(AutoModelForObjectDetection).eval()
assert type(load(AutoConfig)).__name__ == f"{name}Config"
assert type(load(AutoModel)).__name__ == f"{name}Model"
assert type(model).__module__.startswith("transformers_modules."), type(model)
results = {}
for backend in backends:
    processor = load(AutoImageProcessor, backend=backend)
    inputs = processor(images=[Image.open("photo.png")], return_tensors="pt")
    with torch.no_grad():
        results[backend] = {"processor": type(processor).__name__, "logits": model(**inputs).logits}
detector = pipeline("object-detection", model=directory, trust_remote_code=True)
results["pipeline"] = detector("photo.png", threshold=0.0)
results["pipeline processor"] = type(detector.image_processor).__name__
torch.save(results, output)
model.save_pretrained("saved again")
detector.image_processor.save_pretrained("saved again")
assert type(AutoModelForObjectDetection.from_pretrained("saved again", trust_remote_code=True)) is not None
assert not [name for name in sys.modules if name.split(".")[0] == "sap_detr_hf"]
"""

BACKENDS = ["pil", *(["torchvision"] if is_torchvision_available() else [])]


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("exported") / "a.model-1"  # a name that is no Python identifier
    tiny_model(auxiliary_loss=False).save_pretrained(directory)
    size = {"shortest_edge": 96, "longest_edge": 192}
    sap_detr_hf.SapDetrImageProcessorPil(size=size).save_pretrained(directory)
    add_remote_code(directory)
    return directory


def _photograph(folder):
    path = folder / "photo.png"
    Image.linear_gradient("L").resize((150, 100)).convert("RGB").save(path)
    return path


def _expected(directory, folder, backends) -> dict:
    photograph = _photograph(folder)
    model = AutoModelForObjectDetection.from_pretrained(directory).eval()
    results = {}
    for backend in backends:
        processor = AutoImageProcessor.from_pretrained(directory, backend=backend)
        with torch.no_grad():
            outputs = model(**processor(images=[Image.open(photograph)], return_tensors="pt"))
        results[backend] = {"processor": type(processor).__name__, "logits": outputs.logits}
    detector = pipeline("object-detection", model=model, image_processor=processor)
    results["pipeline"] = detector(str(photograph), threshold=0.0)
    results["pipeline processor"] = type(processor).__name__
    return results


@pytest.mark.parametrize("absent", [["sap_detr_hf"], ["sap_detr_hf", "torchvision"]], ids=" and ".join)
def test_loads_without_the_package_and_computes_the_same(model_directory, tmp_path, absent):
    backends = ["pil"] if "torchvision" in absent else BACKENDS
    expected = _expected(model_directory, tmp_path, backends)
    run_without(absent, LOAD, tmp_path, model_directory, tmp_path / "results.pt", "SapDetr", *backends)
    results = torch.load(tmp_path / "results.pt", weights_only=True)
    assert results.keys() == expected.keys()
    for backend in backends:
        assert results[backend]["processor"] == expected[backend]["processor"]
        assert torch.equal(results[backend]["logits"], expected[backend]["logits"]), backend
    assert len(results["pipeline"]) > 3
    assert results["pipeline"] == expected["pipeline"]
    assert results["pipeline processor"] == expected["pipeline processor"]


@pytest.mark.parametrize("name", ["SapDinoDetr", "SapDetr"])
def test_further_models_load_without_the_package(name, tmp_path):
    further = {"auxiliary_loss": False, "denoising_pairs": 3}
    model = tiny_dino(**further) if name == "SapDinoDetr" else tiny_model(**further, **CORRECTED, num_groups=2)
    directory = tmp_path / "model"
    model.save_pretrained(directory)
    sap_detr_hf.SapDetrImageProcessorPil(size={"shortest_edge": 96, "longest_edge": 192}).save_pretrained(directory)
    add_remote_code(directory)
    expected = _expected(directory, tmp_path, ["pil"])
    run_without(["sap_detr_hf"], LOAD, tmp_path, directory, tmp_path / "results.pt", name, "pil")
    results = torch.load(tmp_path / "results.pt", weights_only=True)
    assert torch.equal(results["pil"]["logits"], expected["pil"]["logits"])


@pytest.mark.parametrize("trust", [None, False, True])
def test_the_installed_package_wins(model_directory, trust, tmp_path):
    flag = {} if trust is None else {"trust_remote_code": trust}
    assert type(AutoConfig.from_pretrained(model_directory, **flag)) is sap_detr_hf.SapDetrConfig
    assert type(AutoModel.from_pretrained(model_directory, **flag)) is sap_detr_hf.SapDetrModel
    for backend in BACKENDS:
        processor = AutoImageProcessor.from_pretrained(model_directory, backend=backend, **flag)
        assert type(processor).__module__.startswith("sap_detr_hf."), backend
    detector = pipeline("object-detection", model=str(model_directory), **flag)
    assert type(detector.model) is sap_detr_hf.SapDetrForObjectDetection
    assert len(detector(str(_photograph(tmp_path)), threshold=0.0)) > 3


def test_every_relative_import_is_among_the_files():
    """By Python's own reading of the files; transformers', which the export uses, looks for lines of one form."""
    files = code_files(SapDetrConfig)
    names = {path.stem for path in files}
    assert {"configuration_sap_detr", "modeling_sap_detr", "image_files"} <= names
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level <= 1, path
                assert node.level == 0 or node.module in names, (path, node.module)
                assert node.level == 1 or node.module.split(".")[0] != "sap_detr_hf", path
            elif isinstance(node, ast.Import):
                assert not [alias for alias in node.names if alias.name.split(".")[0] == "sap_detr_hf"], path


ANOTHER_TYPE = {
    "configuration_tiny_detr.py": """
from .configuration_sap_detr import SapDetrConfig


class TinyDetrConfig(SapDetrConfig):
    model_type = "tiny_detr"
""",
    "modeling_tiny_detr.py": """
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.detr.modeling_detr import DetrObjectDetectionOutput

from .configuration_tiny_detr import TinyDetrConfig


class TinyDetrForObjectDetection(PreTrainedModel):
    config_class = TinyDetrConfig

    def __init__(self, config):
        super().__init__(config)
        self.head = nn.Linear(3, config.num_labels + 4)
        self.post_init()

    def forward(self, pixel_values, pixel_mask=None, **kwargs):
        hidden = self.head(pixel_values.mean((2, 3)))[:, None]
        return DetrObjectDetectionOutput(logits=hidden[..., 4:], pred_boxes=hidden[..., :4].sigmoid())
""",
}

GIVE_CODE = """
import sys
import sap_detr_hf
from sap_detr_hf.hub.remote_code import add_remote_code, code_files
from sap_detr_hf.model.configuration_tiny_detr import TinyDetrConfig
from sap_detr_hf.model.modeling_tiny_detr import TinyDetrForObjectDetection
from transformers import AutoConfig, AutoModelForObjectDetection
from transformers.models.auto.image_processing_auto import AutoImageProcessor

source, directory = sys.argv[1:]
assert sap_detr_hf.__file__.startswith(source)
AutoConfig.register("tiny_detr", TinyDetrConfig)
AutoModelForObjectDetection.register(TinyDetrConfig, TinyDetrForObjectDetection)
AutoImageProcessor.register(TinyDetrConfig, image_processor_classes={"pil": sap_detr_hf.SapDetrImageProcessorPil})
TinyDetrForObjectDetection(TinyDetrConfig(num_labels=2)).save_pretrained(directory)
sap_detr_hf.SapDetrImageProcessorPil().save_pretrained(directory)
add_remote_code(directory)
"""

LOAD_ANOTHER_TYPE = """
import sys
from PIL import Image
from transformers import pipeline

detector = pipeline("object-detection", model=sys.argv[1], trust_remote_code=True)
assert type(detector.model).__name__ == "TinyDetrForObjectDetection"
assert detector.model(**detector.image_processor(Image.new("RGB", (60, 40)), return_tensors="pt")).logits.shape[-1] == 2
"""


def test_another_model_type_carries_the_files_it_imports(tmp_path):
    """With a second configuration and model in `model/`, and the image processors of the first."""
    package = tmp_path / "source" / "sap_detr_hf"
    shutil.copytree(Path(sap_detr_hf.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in ANOTHER_TYPE.items():
        (package / "model" / name).write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    command = [sys.executable, "-c", GIVE_CODE, package.parent, tmp_path / "model"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "model").glob("*.py")} == {
        *ANOTHER_TYPE,
        "detector_configuration.py",
        "configuration_sap_detr.py",
        "coco_labels.py",
        "detection_processing.py",
        "image_files.py",
        "image_processing_pil_sap_detr.py",
        "image_processing_sap_detr.py",
    }
    auto_map = json.loads((tmp_path / "model" / "config.json").read_text())["auto_map"]
    assert auto_map["AutoConfig"] == "configuration_tiny_detr.TinyDetrConfig"
    assert auto_map["AutoModelForObjectDetection"] == "modeling_tiny_detr.TinyDetrForObjectDetection"
    assert "AutoModel" not in auto_map
    run_without(["sap_detr_hf"], LOAD_ANOTHER_TYPE, tmp_path, tmp_path / "model")


def test_command_keeps_what_the_configurations_hold(tmp_path, capsys):
    tiny_model(id2label=dict(enumerate("abcdef")), category_ids=[3, 7, 1, 4, 90, 2]).save_pretrained(tmp_path)
    sap_detr_hf.SapDetrImageProcessorPil(size={"shortest_edge": 90, "longest_edge": 120}).save_pretrained(tmp_path)
    before = {name: json.loads((tmp_path / name).read_text()) for name in ("config.json", "preprocessor_config.json")}
    script = load_script("add_remote_code")
    assert script.main([str(tmp_path)]) == 0
    assert "modeling_sap_detr.py" in capsys.readouterr().out
    for name, content in before.items():
        after = json.loads((tmp_path / name).read_text())
        assert after.pop("auto_map")
        assert after == content
    once = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert script.main([str(tmp_path)]) == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == once


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no config.json"),
        ({"config.json": '{"model_type": ["sap_detr"]}'}, "a model of type"),
        ({"config.json": '{"model_type": "sap_detr"}'}, "has no preprocessor_config.json"),
        ({"config.json": '{"model_type": "detr"}'}, "a model of type 'detr'"),
        ({"config.json": "{", "preprocessor_config.json": "{}"}, "config.json is not valid JSON"),
        ({"config.json": "[]"}, "must hold a JSON object"),
    ],
)
def test_other_directories_are_refused_unchanged(tmp_path, capsys, files, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert load_script("add_remote_code").main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files
