import json

import pytest
from project_scripts import load_script


def test_benchmark_prints_a_table_and_writes_json(tmp_path, capsys):
    path = tmp_path / "results.json"
    arguments = ["r50", "--height", "64", "--width", "96", "--rounds", "1", "--json", str(path)]
    assert load_script("benchmark").main(arguments) == 0
    table = capsys.readouterr().out
    assert "dab-detr-r50" in table
    costs = {cost["model"]: cost for cost in json.loads(path.read_text())["costs"]}
    assert costs["r50"]["parameters"] == 50_391_687
    assert costs["dab-detr-r50"]["speedup"] == 1
    assert costs["r50"]["speedup"] == pytest.approx(costs["dab-detr-r50"]["seconds"] / costs["r50"]["seconds"])
    assert all(cost["peak_mib"] > 0 for cost in costs.values())


def test_unknown_model_is_named(capsys):
    assert load_script("benchmark").main(["r18"]) == 1
    assert "'r18'" in capsys.readouterr().err
