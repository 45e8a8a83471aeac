"""The notebook runs from its first cell to its last on tiny data, and is committed without outputs."""

import ast
import base64
import io
import re
import shlex
from pathlib import Path

import nbformat
import pytest
from PIL import Image

from sap_detr_cli.main import VERBS
from sap_detr_cli.options import parse

nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "fine_tune.ipynb"
TINY = """
DATA = "digits"
BASE_MODEL = ""
TRAIN_IMAGES, VAL_IMAGES = 10, 4
EPOCHS, WARMUP_STEPS = 1, 1
WORKERS = 0
"""


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def tagged(notebook, tag):
    (cell,) = [cell for cell in notebook.cells if tag in cell.metadata.get("tags", ())]
    return cell


def assigned(source):
    return {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}


def test_it_is_committed_without_outputs(notebook):
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert code[0] is tagged(notebook, "install")
    assert code[1] is tagged(notebook, "parameters")


def test_commands_in_its_text_exist(notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    commands = re.findall(r"^sap-detr ([\w-]+) (.*)", text, re.MULTILINE)
    assert len(commands) == 2
    for verb, words in commands:
        parse(VERBS[verb], shlex.split(words, comments=True), program=verb)


def test_it_runs_and_shows_its_pictures(notebook, tmp_path, monkeypatch):
    for name, value in {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}.items():
        monkeypatch.setenv(name, value)
    parameters = tagged(notebook, "parameters")
    assert assigned(parameters.source) == assigned(TINY)
    parameters.source = TINY
    tagged(notebook, "install").source = ""
    # `python3` is the kernel of the interpreter that runs this test.
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = {cell.id: [each.get("data", {}) for each in cell.outputs] for cell in notebook.cells if "outputs" in cell}
    for cell in ("show-data", "training", "evaluation", "prediction"):
        (encoded,) = [data for each in shown[cell] for kind, data in each.items() if kind.startswith("image/")]
        with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
            assert min(picture.size) >= 200, cell
    (tables,) = [each["text/markdown"] for each in shown["mistakes"]]
    assert "| missed |" in tables
    assert (tmp_path / "runs/mine/model.safetensors").exists()
    assert (tmp_path / "predicted/detections.jsonl").read_text().count("\n") == 1
