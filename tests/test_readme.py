"""What the README states is what the files beside it say, and its code runs."""

import ast
import glob
import re
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from PIL import Image
from tiny_model import tiny_model
from tiny_training import fresh_process_state
from transformers import CONFIG_MAPPING

from sap_detr_cli.main import VERBS, main
from sap_detr_cli.options import parse
from sap_detr_hf import SapDetrImageProcessorPil
from sap_detr_hf.demo.digits import make_digits
from sap_detr_hf.hub.remote_code import code_files

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "sap_detr_hf"
README = (ROOT / "README.md").read_text()
# What the model's code may import where no package is installed; `accelerate` only within a function.
TRAVELLING_IMPORTS = {"PIL", "huggingface_hub", "numpy", "scipy", "torch", "transformers"}


def save_confident_model(folder: Path):
    """Save a tiny model that detects something in every image."""
    model = tiny_model(num_labels=10)
    for head in model.class_heads:
        head.layers[-1].bias.data += 5
    model.save_pretrained(folder)
    SapDetrImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)


def test_prediction_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_confident_model(tmp_path / "model")
    Image.effect_noise((150, 100), 80).convert("RGB").save("photo.jpg")
    example = re.search(r"## Predict\n\n```python\n(.*?)```", README, re.DOTALL)[1]
    exec(example, {"MODEL_DIR": str(tmp_path / "model")})
    assert "'xmin'" in capsys.readouterr().out


COMMANDS = re.findall(r"^(sap-detr .*?)(?: +# .*)?$", README, re.MULTILINE) + re.findall(r"`(sap-detr .*?)`", README)
PARSED_ONLY = (
    "app",  # serves until it is stopped; tests/app runs it
    "train own_data",  # tests/training/test_own_data.py runs it
    "convert-checkpoint",  # tests/weights run these two, on synthetic checkpoints
    "warm-start",
    "export",  # takes half a minute; tests/test_guides.py runs it
)
SHORTER = {"train": ["--epochs", "1", "--warmup_steps", "1", "--workers", "0"], "evaluate": ["--workers", "0"]}


@pytest.fixture
def users_folder(tmp_path, monkeypatch) -> Path:
    """The folder of a user who has what README's commands name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    make_digits(tmp_path / "DATA", train=4, val=4, size=(96, 64))
    save_confident_model(tmp_path / "MODEL_DIR")
    for name in ("photo.jpg", "photos/a.jpg", "more/b.jpg", "clip.jpg"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.effect_noise((90, 60), 80).convert("RGB").save(name)
    return tmp_path


def test_commands_run(users_folder):
    assert len(COMMANDS) > 12
    for command in COMMANDS:
        verb, *words = shlex.split(command.replace("clip.mp4", "clip.jpg"))[1:]
        if verb.startswith("-") or verb == "VERB":
            continue
        if command.removeprefix("sap-detr ").startswith(PARSED_ONLY):
            parse(VERBS[verb], words, program=command)
            continue
        found = [name for word in words for name in (sorted(glob.glob(word)) or [word])]
        fresh_process_state()
        assert main([verb, *found, *SHORTER.get(verb, [])]) == 0, command


def imported(nodes: Iterable[ast.AST]) -> set[str]:
    """Top-level packages that these statements import, and modules of this package with a dot in front."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            names |= {f".{name}" for name in ([node.module] if node.module else [alias.name for alias in node.names])}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).split(".")[0])
    return names - sys.stdlib_module_names


def test_travelling_files_import_what_the_rule_allows():
    files = set((PACKAGE / "model").glob("*.py")) - {PACKAGE / "model" / "__init__.py"}
    types = [path.stem.removeprefix("configuration_") for path in files if path.stem.startswith("configuration_")]
    assert {path.name for each in types for path in code_files(CONFIG_MAPPING[each])} == {path.name for path in files}
    at_import, later = set(), set()
    for path in files:
        tree = ast.parse(path.read_text())
        nested = {node for top in ast.walk(tree) if isinstance(top, ast.FunctionDef) for node in ast.walk(top)}
        later |= imported(nested)
        at_import |= imported(node for node in ast.walk(tree) if node not in nested)
    assert {name for name in at_import if not name.startswith(".")} == TRAVELLING_IMPORTS
    assert later == {"accelerate"}
