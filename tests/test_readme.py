"""What the README states is what the files beside it say, and its code runs."""

import json
import re
from pathlib import Path

from PIL import Image
from tiny_model import tiny_model

from sap_detr_hf import SapDetrImageProcessorPil
from sap_detr_hf.benchmark import ForwardCost, table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_benchmark_table_is_the_measured_one():
    measured = json.loads((ROOT / "benchmarks" / "forward_cpu.json").read_text())
    assert table([ForwardCost(**cost) for cost in measured["costs"]]) in README
    assert (measured["setting"]["height"], measured["setting"]["width"]) == (800, 1066)
    assert measured["hardware"]["threads"] == 2


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


def test_files_and_scripts_named_exist():
    paths = set(re.findall(r"`?((?:recipes|scripts|docs|benchmarks)/[\w/]+\.\w+)", README))
    assert len(paths) > 10
    for path in paths:
        assert (ROOT / path).is_file(), path
    modules = set(re.findall(r"`(\w+\.py)`", README))
    assert len(modules) > 10
    for module in modules:
        assert list((ROOT / "src" / "sap_detr_hf").glob(module)) or list((ROOT / "scripts").glob(module)), module
