"""What the README states is what the files beside it say, and its code runs."""

import json
import re
from pathlib import Path

from PIL import Image
from tiny_model import tiny_model

from sap_detr_hf import SapDetrImageProcessorPil
from sap_detr_hf.benchmark_bars import bars_table
from sap_detr_hf.benchmark_report import read_report, table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def measured(name: str) -> dict:
    return json.loads((ROOT / "benchmarks" / f"{name}.json").read_text())


def test_benchmark_tables_are_the_measured_ones():
    (forward,) = read_report(ROOT / "benchmarks" / "forward_cpu.json")
    assert table(forward) in README
    assert {(m.height, m.width, m.batch_size, m.dtype) for m in forward} == {(800, 1066, 1, "float32")}
    assert bars_table(read_report(ROOT / "benchmarks" / "bars_cpu.json")) in README


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


def test_files_and_scripts_named_exist():
    paths = set(re.findall(r"`?((?:recipes|scripts|docs|benchmarks)/[\w/]+\.\w+)", README))
    assert len(paths) > 10
    for path in paths:
        assert (ROOT / path).is_file(), path
    modules = set(re.findall(r"`(\w+\.py)`", README))
    assert len(modules) > 10
    for module in modules:
        assert list((ROOT / "src" / "sap_detr_hf").glob(module)) or list((ROOT / "scripts").glob(module)), module
