"""What the README states is what the files beside it say, and its code runs."""

import ast
import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from PIL import Image
from tiny_model import tiny_model

from sap_detr_hf import SapDetrImageProcessorPil
from sap_detr_hf.benchmark_bars import bars_table
from sap_detr_hf.benchmark_report import read_report, table
from sap_detr_hf.coco_metric import CocoMetric
from sap_detr_hf.detection_data import load_detection_data
from sap_detr_hf.remote_code import code_files

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "sap_detr_hf"
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
GUIDES = README + CONTRIBUTING


def measured(name: str) -> dict:
    return json.loads((ROOT / "benchmarks" / f"{name}.json").read_text())


def test_benchmark_tables_are_the_measured_ones():
    (forward,) = read_report(ROOT / "benchmarks" / "forward_cpu.json")
    assert table(forward) in README
    assert {(m.height, m.width, m.batch_size, m.dtype) for m in forward} == {(800, 1066, 1, "float32")}
    assert bars_table(read_report(ROOT / "benchmarks" / "bars_cpu.json")) in README
    kept = {m.model: m.speedup for m in read_report(ROOT / "benchmarks" / "forward_cpu_kept_memory.json")[0]}
    sentence = f"R50 optimised is then {kept['r50:optimized']:.2f} times as fast as DAB-DETR"
    assert sentence in " ".join(README.split())
    variables = measured("forward_cpu_kept_memory")["memory_settings"]
    assert "export " + " ".join(f"{name}={value}" for name, value in variables.items()) in README


def test_other_speeds_are_the_measured_ones():
    loader = measured("loader_cpu")
    rates = [loader[f"{part}_images_per_second"] for part in ("loader", "training")]
    assert f"gave {rates[0]:.1f} images a second where training took {rates[1]:.2f}" in " ".join(README.split())
    precision = measured("demo_precision")
    sentence = "AP is {:.4f} in float32 and {:.4f} in bfloat16"
    assert sentence.format(*(precision[name]["AP"] for name in ("float32", "bfloat16"))) in " ".join(README.split())
    steps = {
        task: read_report(ROOT / "benchmarks" / f"{task}_cpu_gaussian.json")[0] for task in ("forward", "training")
    }
    sentence = "forward pass {:.2f} times and its training step {:.2f} times as fast, with {:.2f} and {:.2f} times"
    figures = [channels.speedup for _, channels, *_ in steps.values()]
    figures += [channels.peak_mib / bias.peak_mib for bias, channels, *_ in steps.values()]
    assert sentence.format(*figures) in " ".join(README.split())
    for model in measured("onnx_cpu")["models"]:
        metrics = model["metrics"]
        row = f" | {model['megabytes']:.1f} | {metrics['AP']:.3f} | {metrics['AP50']:.3f} | {model['speedup']:.2f} |"
        assert row in README
    float32, int8 = (model["speedup"] for model in measured("onnx_r50_cpu")["models"][1:])
    assert f"{float32:.2f} times as fast as in torch, with int8 linear layers {int8:.2f} times" in README


def test_demo_figures_are_the_measured_ones():
    measured = json.loads((ROOT / "docs" / "demo.json").read_text())
    minutes = measured["seconds"]["training"] / 60
    assert f"COCO AP {measured['AP']:.3f}, AP50 {measured['AP50']:.3f}, {minutes:.1f} minutes of training" in README


def test_convergence_table_is_the_measured_one():
    lines = (ROOT / "benchmarks" / "bccd_convergence.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) > 5
    assert "\n".join(rows) in README


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


def test_names_in_the_package_exist():
    """Dotted names in the text; those of examples run with them."""
    names = set(re.findall(r"\bsap_detr_hf\.(\w+)\.(\w+)", README))
    assert len(names) > 3
    for module, name in names:
        assert hasattr(importlib.import_module(f"sap_detr_hf.{module}"), name), f"{module}.{name}"
    assert hasattr(CocoMetric, "missing_images")
    assert "streaming" in inspect.signature(load_detection_data).parameters


def test_files_and_scripts_named_exist():
    paths = set(re.findall(r"`?((?:recipes|scripts|docs|benchmarks)/[\w/]+\.\w+)", GUIDES))
    assert len(paths) > 10
    for path in paths:
        assert (ROOT / path).is_file(), path
    for module in set(re.findall(r"`([\w/]+\.py)`", README)):
        assert any((folder / module).is_file() for folder in (PACKAGE, ROOT, ROOT / "scripts")), module


def test_every_module_and_script_is_named():
    modules = [path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")]
    scripts = [f"scripts/{path.name}" for path in (ROOT / "scripts").glob("*.py")]
    assert len(modules) > 70
    assert len(scripts) > 15
    assert [name for name in modules if f"`{name}`" not in GUIDES] == []
    assert [name for name in scripts if not re.search(rf"\b{re.escape(name)}", GUIDES)] == []


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
    files = {*PACKAGE.glob("*_sap_detr.py"), PACKAGE / "coco_labels.py", PACKAGE / "image_files.py"}
    assert {path.name for path in code_files()} == {path.name for path in files}
    rule = " ".join(CONTRIBUTING.split()).split("Python's own modules they import ")[1].split(" within a function")[0]
    *packages, optional = re.findall(r"`(\w+)`", rule)
    at_import, later = set(), set()
    for path in files:
        tree = ast.parse(path.read_text())
        nested = {node for top in ast.walk(tree) if isinstance(top, ast.FunctionDef) for node in ast.walk(top)}
        later |= imported(nested)
        at_import |= imported(node for node in ast.walk(tree) if node not in nested)
    assert at_import == {*packages, *(f".{path.stem}" for path in files if f".{path.stem}" in at_import)}
    assert later == {optional}


def test_prediction_imports_where_there_is_no_resource_module():
    """The README's promise for Windows, where Python has no `resource`."""
    trees = {path.stem: list(ast.walk(ast.parse(path.read_text()))) for path in PACKAGE.glob("*.py")}
    needs = {
        name
        for name, tree in trees.items()
        if any(alias.name == "resource" for node in tree if isinstance(node, ast.Import) for alias in node.names)
    }
    assert needs
    while more := {name for name in trees if imported(trees[name]) & {f".{need}" for need in needs}} - needs:
        needs |= more
    assert {"training", "benchmark"} <= needs
    assert not needs & {"__init__", "prediction", "page", "explanation_report", "onnx_session"}
