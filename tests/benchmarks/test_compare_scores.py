import json

import torch
from tiny_dino import tiny_dino
from tiny_model import tiny_inputs

from benchmarks import compare_scores
from sap_detr_hf import SapDetrImageProcessorPil
from sap_detr_hf.demo.digits import make_digits


@torch.no_grad()
def test_score_is_the_root_of_class_times_objectness():
    model = tiny_dino()
    plain = model(*tiny_inputs())
    model.register_forward_hook(compare_scores.score_by_both)
    both = model(*tiny_inputs())
    expected = (plain.logits.sigmoid() * plain.pred_objectness.sigmoid()).sqrt()
    torch.testing.assert_close(both.logits.sigmoid(), expected)


def test_every_model_is_evaluated_with_both_scores(tmp_path):
    make_digits(tmp_path / "digits", train=1, val=2, size=(64, 64))
    for number in range(2):
        model = tiny_dino(seed=number, num_labels=10, category_ids=list(range(1, 11)))
        model.save_pretrained(tmp_path / f"model_{number}")
        SapDetrImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(tmp_path / f"model_{number}")
    models = [str(tmp_path / f"model_{number}") for number in range(2)]
    output = tmp_path / "scores.json"
    assert compare_scores.main([str(tmp_path / "digits"), *models, "--output", str(output)]) == 0
    runs = json.loads(output.read_text())["runs"]
    assert [run["model"].rpartition("/")[2] for run in runs] == ["model_0", "model_1"]
    for run in runs:
        assert set(run[compare_scores.SCORES[0]]) == set(run[compare_scores.SCORES[1]]) == set(compare_scores.METRICS)


def test_a_missing_model_is_named(tmp_path, capsys):
    make_digits(tmp_path / "digits", train=1, val=1, size=(64, 64))
    assert compare_scores.main([str(tmp_path / "digits"), str(tmp_path / "none"), "--output", "x.json"]) == 2
    assert "none" in capsys.readouterr().err
