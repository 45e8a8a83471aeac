"""The handler of Inference Endpoints, made and called as the platform does, where this package is not installed."""

import json
import re
import shutil
from pathlib import Path

import pytest
from absent_packages import run_without
from packaging.requirements import Requirement
from PIL import Image
from project_scripts import load_script
from tiny_dino import tiny_dino
from tiny_model import tiny_model
from transformers import pipeline

from sap_detr_hf import SapDetrImageProcessorPil
from sap_detr_hf.hub.endpoint import endpoint_contents
from sap_detr_hf.hub.publish import prepared_folder

ROOT = Path(__file__).parents[2]

CALL = """
import base64, importlib.util, json, sys
from io import BytesIO
from PIL import Image

directory = sys.argv[1]
spec = importlib.util.spec_from_file_location("handler", f"{directory}/handler.py")  # as huggingface-inference-toolkit
sys.path.insert(0, directory)
module = sys.modules["handler"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
handler = module.EndpointHandler(directory)

content = open("photo.png", "rb").read()
text = base64.b64encode(content).decode()
forms = {"bytes": content, "base64": text, "data": f"data:image/png;base64,{text}", "image": Image.open("photo.png")}
low = {"threshold": 0.0}
results = {name: handler({"inputs": inputs, "parameters": low}) for name, inputs in forms.items()}
results["default"] = handler({"inputs": content})

module.MAX_PIXELS = 150 * 99
wrong = {
    "pixels": {"inputs": content},
    "pixels of a PIL image": {"inputs": Image.open("photo.png")},
    "address": {"inputs": "https://example.com/photo.png"},
    "nothing": {},
    "several": {"inputs": [content]},
    "no image": {"inputs": b"no image"},
    "threshold": {"inputs": content, "parameters": {"threshold": 2}},
    "parameter": {"inputs": content, "parameters": {"top_k": 2}},
    "parameters": {"inputs": content, "parameters": "all"},
}
module.MAX_BYTES = len(content) + 100
wrong["bytes"] = {"inputs": content + bytes(200)}
errors = {}
for name, data in wrong.items():
    try:
        handler(data)
    except ValueError as error:
        errors[name] = str(error)
assert not [name for name in sys.modules if name.split(".")[0] == "sap_detr_hf"]
json.dump([results, errors], open("results.json", "w"))
"""


@pytest.fixture(scope="module", params=[tiny_model, tiny_dino])
def model_dir(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    request.param().save_pretrained(folder)
    SapDetrImageProcessorPil(size={"shortest_edge": 96, "longest_edge": 192}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def answers(model_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("platform")
    with prepared_folder(model_dir, "the card", endpoint=True) as sent:
        shutil.copytree(sent, folder / "repository")
    Image.linear_gradient("L").resize((150, 100)).convert("RGB").save(folder / "photo.png")
    run_without(["sap_detr_hf"], CALL, folder, folder / "repository")
    expected = pipeline("object-detection", model=str(model_dir))(str(folder / "photo.png"), threshold=0.0)
    return *json.loads((folder / "results.json").read_text()), expected


def test_every_form_of_an_image_gets_the_pipelines_answer(answers):
    results, _, expected = answers
    assert len(expected) > 3
    for name in ("bytes", "base64", "data", "image"):
        assert results[name] == expected, name
    assert results["default"] == [each for each in expected if each["score"] > 0.5]


@pytest.mark.parametrize(
    ("request_name", "message"),
    [
        ("pixels", "150 x 100"),
        ("pixels of a PIL image", "150 x 100"),
        ("bytes", "bytes: at most"),
        ("address", "addresses are not fetched"),
        ("nothing", "must be one image"),
        ("several", "must be one image"),
        ("no image", "not an image"),
        ("threshold", "between 0 and 1"),
        ("parameter", "top_k"),
        ("parameters", "all"),
    ],
)
def test_a_wrong_request_is_answered_with_a_sentence(answers, request_name, message):
    assert message in answers[1][request_name]


def test_requirements_are_those_of_the_models_code(model_dir):
    lines = endpoint_contents(model_dir)["requirements.txt"].decode().splitlines()
    assert [Requirement(line).name for line in lines] == ["torch", "transformers", "scipy", "pillow", "numpy"]
    assert all(Requirement(line).specifier for line in lines)


def test_only_endpoint_sends_the_handler(model_dir, tmp_path, capsys):
    card = shutil.copy(ROOT / "model_cards" / "demo.md", tmp_path)
    publish = load_script("publish").main
    sent = []
    for options in ([], ["--endpoint"]):
        assert publish([str(model_dir), "someone/model", "--card", str(card), "--dry-run", *options]) == 0
        sent.append(set(re.findall(r"bytes  (\S+)$", capsys.readouterr().out, re.MULTILINE)))
    assert sent[1] - sent[0] == {"handler.py", "requirements.txt"}
