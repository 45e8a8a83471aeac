"""The guides in `docs/` tell the truth: their code runs in order on tiny data, and all that they name exists."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from project_scripts import load_script
from tiny_training import TINY_MODEL, run_here

from sap_detr_cli.main import VERBS
from sap_detr_cli.options import options
from sap_detr_cli.settings.train import TrainingSettings
from sap_detr_hf import SapDetrConfig, SapDetrForObjectDetection, SapDetrImageProcessor
from sap_detr_hf.demo.digits import make_digits

ROOT = Path(__file__).parents[1]
SETTINGS = {option.name for option in options(TrainingSettings)}
GUIDES = {name: (ROOT / name).read_text() for name in ("docs/fine_tuning.md", "docs/troubleshooting.md")}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OPTION = re.compile(r"(?<![\w-])--([a-z][\w-]*)")
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "ACCELERATE_USE_CPU": "true",
    "PYTHONPATH": str(ROOT / "src"),
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A project folder with a user's `my_data` (other categories than the model's), `base_model` and `photo.jpg`."""
    folder = tmp_path_factory.mktemp("project")
    make_digits(folder / "my_data", train=6, val=6, size=(96, 64), seed=13)  # every digit in both
    torch.manual_seed(0)
    SapDetrForObjectDetection(SapDetrConfig(**TINY_MODEL, num_labels=6)).save_pretrained(folder / "base_model")
    size = {"shortest_edge": 64, "longest_edge": 96}
    SapDetrImageProcessor(size=size).save_pretrained(folder / "base_model")
    Image.effect_noise((150, 100), 80).convert("RGB").save(folder / "photo.jpg")
    return folder


def run_blocks(text: str, folder: Path):
    """Run the Bash and Python blocks in order as a user in `folder` would."""
    for language, code in BLOCK.findall(text):
        if language == "bash":
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", code],
                cwd=folder,
                env=ENVIRONMENT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=120,
            )
            assert done.returncode == 0, f"{code}\n{done.stdout}"
        elif language == "python":
            exec(compile(code, "guide", "exec"), {})


def test_fine_tuning_guide_runs(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    run_blocks(GUIDES["docs/fine_tuning.md"], workplace)
    assert re.search(r"epoch 1: AP \d\.\d{3}, AP50", capsys.readouterr().out)
    assert json.loads((workplace / "runs/mine/config.json").read_text())["id2label"]["7"] == "7"  # the data's, not six
    for left in (
        "shown/all.png",
        "runs/mine/curves.png",
        "runs/mine/last/config.json",
        "evaluation/results.json",
        "evaluation/per_class.md",
        "evaluation/precision_recall.png",
        "evaluation/worst",
        "predicted/detections.jsonl",
        "explained/explanation.png",
        "mine.onnx",
    ):
        assert (workplace / left).exists(), left


def test_troubleshooting_runs(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    if not Path("runs/mine").exists():  # where the guide ran in another process
        trained = ["--epochs", "2", "--warmup_steps", "1", "--log_steps", "1", "--workers", "0"]
        places = ["--model", "base_model", "--data", "my_data", "--output_dir", "runs/mine"]
        assert run_here("finetune", *places, *trained) == 0
        assert load_script("evaluate").main(["runs/mine", "my_data", "--output", "evaluation", "--workers", "0"]) == 0
    for name in ("one_batch", "memory"):  # an earlier try does not stop the next one
        Path(f"runs/{name}/checkpoints").mkdir(parents=True)
        Path(f"runs/{name}/checkpoints/step_00000001.pt").touch()
    run_blocks(GUIDES["docs/troubleshooting.md"], workplace)
    output = capsys.readouterr().out
    assert "class 3: 3, category id 4" in output
    assert "'AP_small'" in output
    assert re.search(r"\d+ steps; highest learning rate \d", output)


@pytest.mark.parametrize("guide", GUIDES)
def test_settings_named_exist(guide):
    """What is written like a setting is a setting or a model field; `{...: ...}` holds model fields."""
    fields = {field.name for field in dataclasses.fields(SapDetrConfig)}
    prose = BLOCK.sub("", GUIDES[guide])
    named = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", prose)) - {"my_data", "base_model"}
    assert len(named) > 5
    assert sorted(named - SETTINGS - fields) == []
    for mapping in re.findall(r"model_overrides '(\{.*?\})'", GUIDES[guide]):
        assert set(yaml.safe_load(mapping)) <= fields


@pytest.mark.parametrize("guide", GUIDES)
def test_options_in_prose_exist(guide):
    known = set().union(*({option.name for option in options(settings)} for settings in VERBS.values()))
    named = {name.replace("-", "_") for name in OPTION.findall(BLOCK.sub("", GUIDES[guide]))}
    assert named - {"help", "config_file"} <= known  # `--config_file` is accelerate launch's


def test_backbone_of_contributing_can_be_trained():
    recipe = yaml.safe_load(re.search(r"```yaml\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)[1])
    assert recipe.keys() <= SETTINGS
    small = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    config = SapDetrConfig.from_variant(recipe["variant"], num_labels=2, **small, **recipe["model_overrides"])
    label = {"class_labels": torch.zeros(1, dtype=torch.long), "boxes": torch.full((1, 4), 0.5)}
    model = SapDetrForObjectDetection(config)
    assert type(model.model.backbone).__name__ == "ConvNextBackbone"
    model(pixel_values=torch.randn(1, 3, 64, 64), labels=[label]).loss.backward()
    assert any(parameter.grad is not None for parameter in model.model.backbone.parameters())


@pytest.mark.parametrize(
    "guide",
    [*GUIDES, "CONTRIBUTING.md", "README.md", "docs/architecture.md", "docs/benchmarks.md", "docs/distributed.md"],
)
def test_files_and_links_exist(guide):
    text = (ROOT / guide).read_text()
    for path in set(re.findall(r"(?<![\w/])((?:recipes|scripts|docs|tests|src)/[\w./-]*\w)", text)):
        assert (ROOT / path).exists(), path
    for link in re.findall(r"\]\((?!https://)([^)]+)\)", text):
        target, _, anchor = link.partition("#")
        file = ((ROOT / guide).parent / target) if target else ROOT / guide
        assert file.exists(), link
        headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not anchor or anchor in anchors, link


def test_architecture_names_files_that_exist():
    """Every file and folder that the drawing and the table name exists, and every folder of the package is named."""
    package, text = ROOT / "src" / "sap_detr_hf", (ROOT / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"(?<![\w/.])((?:\w+/)+(?:\w+\.\w+)?)", text)) - {"src/sap_detr_hf/"}
    assert len(named) > 30
    assert [
        path for path in sorted(named) if not any((base / path).exists() for base in (package, ROOT, ROOT / "src"))
    ] == []
    folders = {path.name for path in package.iterdir() if path.is_dir() and not path.name.startswith("_")}
    assert folders - {path.split("/")[0] for path in named} == {"demo", "recipes"}
