"""SAP-DINO-DETR trained by the same command: resumed bit for bit, evaluated, on two processes as on one."""

import pytest
from tiny_training import differences, finish, metrics, newest_state, run_here, start, write_recipe

from sap_detr_hf.demo.digits import make_digits

pytest.importorskip("timm")
SMALL = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
         "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_queries": 20,
         "denoising_pairs": 3}  # fmt: skip


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    make_digits(folder, 6, 3, (96, 96))
    return folder


def recipe(folder, digits, **changes):
    fields = {"data": str(digits), "variant": "dino-small", "model_overrides": SMALL, "workers": 0, **changes}
    return write_recipe(folder / "recipe.yaml", **fields)


def test_resumed_equals_uninterrupted(digits, tmp_path):
    path = recipe(
        tmp_path, digits, epochs=2, checkpoint_steps=1, keep_checkpoints=9, ema_decay=0.9, evaluation_epochs=1
    )
    assert run_here(path, "--output_dir", tmp_path / "whole") == 0
    state = tmp_path / "whole" / "checkpoints" / "step_00000002.pt"
    assert run_here(path, "--output_dir", tmp_path / "parts", "--resume", state) == 0
    whole, parts = (newest_state(tmp_path / name) for name in ("whole", "parts"))
    assert [text for name in ("model", "ema", "optimizer") for text in differences(whole[name], parts[name])] == []
    assert any("AP" in line for line in metrics(tmp_path / "whole"))


def test_two_processes_equal_one(digits, tmp_path):
    path = recipe(tmp_path, digits, model_overrides={**SMALL, "denoising_pairs": 0}, max_steps=2, evaluation_epochs=0)
    two = start(path, "--output_dir", tmp_path / "two", processes=2)
    assert run_here(path, "--output_dir", tmp_path / "one") == 0
    code, output = finish(two)
    assert code == 0, output
    for expected, found in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        names = [name for name in expected if name != "class_error"]  # a mean of each batch's percentage
        assert [found[name] for name in names] == pytest.approx([expected[name] for name in names], rel=2e-5)


def test_half_precision_with_checkpointing_is_close(digits, tmp_path):
    """Over accumulated batches; the loss in float32."""
    path = recipe(tmp_path, digits, model_overrides={**SMALL, "denoising_pairs": 0}, max_steps=2, evaluation_epochs=0)
    assert run_here(path, "--output_dir", tmp_path / "plain") == 0
    options = ("--mixed_precision", "bf16", "--gradient_checkpointing", "true")
    assert run_here(path, "--output_dir", tmp_path / "half", *options) == 0
    for expected, found in zip(metrics(tmp_path / "plain"), metrics(tmp_path / "half"), strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=0.05)
        assert found["loss"] != expected["loss"]
