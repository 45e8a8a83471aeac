"""What the README states is what the files beside it say, and its code runs."""

import ast
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from PIL import Image
from tiny_model import tiny_model
from transformers import CONFIG_MAPPING

from sap_detr_hf import SapDetrImageProcessorPil
from sap_detr_hf.hub.remote_code import code_files

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "sap_detr_hf"
README = (ROOT / "README.md").read_text()
# What the model's code may import where no package is installed; `accelerate` only within a function.
TRAVELLING_IMPORTS = {"PIL", "huggingface_hub", "numpy", "scipy", "torch", "transformers"}


def test_prediction_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = tiny_model()
    for head in model.class_heads:
        head.layers[-1].bias.data += 5  # confident
    model.save_pretrained(tmp_path / "model")
    SapDetrImageProcessorPil(size={"shortest_edge": 96, "longest_edge": 160}).save_pretrained(tmp_path / "model")
    Image.effect_noise((150, 100), 80).convert("RGB").save("photo.jpg")
    example = re.search(r"## Predict\n\n```python\n(.*?)```", README, re.DOTALL)[1]
    exec(example, {"MODEL_DIR": str(tmp_path / "model")})
    assert "'xmin'" in capsys.readouterr().out


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
