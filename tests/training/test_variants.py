"""Training with groups of queries and denoising, by the real loop: resumed, on two processes, reported."""

import pytest
import torch
from tiny_training import TINY_MODEL, differences, finish, metrics, newest_state, run_here, start, write_recipe
from transformers import AutoModelForObjectDetection

from sap_detr_hf.demo.digits import make_digits
from sap_detr_hf.model.configuration_sap_detr import CORRECTED

GROUPS = {**TINY_MODEL, **CORRECTED, "freeze_backbone_batch_norm": True, "num_groups": 2}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    make_digits(folder, 8, 2, (96, 96))
    return folder


def test_a_resumed_run_draws_the_same_noise(digits, tmp_path, capfd):
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        data=str(digits),
        model_overrides={**GROUPS, "denoising_pairs": 5, "group_content": True},
        checkpoint_steps=1,
        keep_checkpoints=9,
    )
    assert run_here(recipe, "--output_dir", tmp_path / "whole") == 0
    assert "class dn" in capfd.readouterr().err
    state = tmp_path / "whole" / "checkpoints" / "step_00000002.pt"
    assert run_here(recipe, "--output_dir", tmp_path / "parts", "--resume", state) == 0
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")[2:]
    assert {"loss_ce_dn", "loss_inner_share", "loss_giou_dn_0"} <= metrics(tmp_path / "whole")[0].keys()
    states = [newest_state(tmp_path / name) for name in ("whole", "parts")]
    for each in states:
        each["progress"].pop("metrics_bytes")
    assert differences(*states) == []
    model = AutoModelForObjectDetection.from_pretrained(tmp_path / "whole")
    assert (model.config.num_groups, model.config.denoising_pairs) == (2, 5)
    start_weights = torch.load(tmp_path / "whole" / "checkpoints" / "step_00000001.pt", weights_only=True)["model"]
    for name in ("model.query_groups.sides.weight", "model.query_groups.content.weight",
                 "denoising_class_embedding.weight"):  # fmt: skip
        assert not torch.equal(model.state_dict()[name], start_weights[name]), f"{name} did not learn"


def test_two_processes_equal_one_with_groups(digits, tmp_path):
    recipe = write_recipe(tmp_path / "recipe.yaml", data=str(digits), model_overrides=GROUPS, max_steps=2)
    two = start(recipe, "--output_dir", tmp_path / "two", processes=2)
    assert run_here(recipe, "--output_dir", tmp_path / "one") == 0
    assert run_here(recipe, "--output_dir", tmp_path / "joined", "--images_per_device", "4") == 0
    code, output = finish(two)
    assert code == 0, output
    for other in ("two", "joined"):
        for expected, found in zip(metrics(tmp_path / "one"), metrics(tmp_path / other), strict=True):
            names = [name for name in expected if name != "class_error"]  # a mean of each batch's percentage
            assert [found[name] for name in names] == pytest.approx([expected[name] for name in names], rel=2e-5)
