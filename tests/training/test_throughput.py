import json
import time

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from project_scripts import load_script
from tiny_training import write_recipe

from sap_detr_cli.options import parse
from sap_detr_cli.settings.train import TrainingSettings
from sap_detr_hf.demo.digits import make_digits
from sap_detr_hf.training.failure import TrainingFailed
from sap_detr_hf.training.throughput import measure_throughput


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_rates_of_loader_and_training(tmp_path, monkeypatch, capsys, workers):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    make_digits(tmp_path / "digits", train=12, val=2, size=(64, 64))
    recipe = write_recipe(tmp_path / "recipe.yaml", data=str(tmp_path / "digits"), cache_dir=str(tmp_path / "cache"))
    output = tmp_path / "run"
    arguments = [recipe, "--output_dir", str(output), "--workers", str(workers), "--max_steps", "2"]
    assert load_script("time_training").main(arguments) == 0
    text = capsys.readouterr().out
    result = json.loads(text[: text.rindex("}") + 1])
    assert result["images_per_step"] == 4
    assert result["steps"] == 2
    assert result["versions"]["torch"] == torch.__version__.split("+")[0]
    rates = [result[f"{part}_images_per_second"] for part in ("loader", "training")]
    assert result["loader_over_training"] == pytest.approx(rates[0] / rates[1])
    assert not output.exists()


def test_loader_is_quicker_than_a_slow_step(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr("sap_detr_hf.training.throughput.take_step", lambda *arguments: time.sleep(0.3))
    make_digits(tmp_path / "digits", train=12, val=2, size=(64, 64))
    recipe = write_recipe(tmp_path / "recipe.yaml", data=str(tmp_path / "digits"), cache_dir=str(tmp_path / "cache"))
    settings = parse(TrainingSettings, [recipe, "--output_dir", str(tmp_path / "run"), "--max_steps", "2"])
    result = measure_throughput(settings)
    assert result["training_images_per_second"] == pytest.approx(4 / 0.3, rel=0.25)
    assert result["loader_over_training"] > 1


def test_failed_training_is_one_sentence(monkeypatch, capsys):
    def fail(settings):
        raise TrainingFailed("The loss is not finite.")

    monkeypatch.setattr("sap_detr_hf.cli.time_training.measure_throughput", fail)
    assert load_script("time_training").main(["--variant", "r50", "--data", "coco"]) == 1
    assert capsys.readouterr().err == "error: The loss is not finite.\n"


def test_help_says_what_this_command_does(capsys):
    with pytest.raises(SystemExit):
        load_script("time_training").main(["--help"])
    words = capsys.readouterr().out
    assert "whether the data loader keeps up" in words
    assert "Train SAP-DETR" not in words


def test_wrong_settings_are_named(capsys):
    assert load_script("time_training").main(["--no_such_setting", "1"]) == 2
    assert "no_such_setting" in capsys.readouterr().err
