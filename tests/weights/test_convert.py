"""Conversion of released checkpoints: whole, prefixed, bare, foreign, truncated and malicious files."""

import argparse
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from released_reference import DIRECTORY, outputs, reference_inputs, released_state_dict
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from sap_detr_cli.options import options
from sap_detr_cli.settings.convert_checkpoint import ConversionSettings
from sap_detr_cli.settings.train import TrainingSettings
from sap_detr_hf.model.configuration_sap_detr import PUBLISHED_VARIANTS
from sap_detr_hf.weights.convert import (
    ConversionError,
    config_of_checkpoint,
    convert_checkpoint,
    convert_state_dict,
    read_checkpoint,
)
from sap_detr_hf.weights.variants import VARIANTS

SCRIPT = Path(__file__).parents[2] / "scripts" / "convert_checkpoint.py"
ARGS = json.loads((DIRECTORY / "args_resnet50.json").read_text())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A file as the released training loop saves it: a Namespace, DDP's prefix, optimizer state beside the model."""
    path = tmp_path_factory.mktemp("released") / "checkpoint.pth"
    state = {"module." + name: tensor for name, tensor in released_state_dict("resnet50").items()}
    optimizer = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    content = {"model": state, "optimizer": optimizer, "epoch": 49, "args": argparse.Namespace(**ARGS)}
    torch.save(content, path)
    return path


def test_command_converts_and_verifies(checkpoint, tmp_path):
    output = tmp_path / "model"
    command = [sys.executable, str(SCRIPT), str(checkpoint), str(output), "--verify"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "50,391,687 parameters, 91 classes, verified" in result.stdout
    names = {p.name for p in output.iterdir()}
    assert names == {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}

    model = AutoModelForObjectDetection.from_pretrained(output).eval()
    with torch.no_grad():
        got = model(*reference_inputs("resnet50"))
    assert abs(got.logits.numpy() - outputs("resnet50")["logits"]).max() < 2e-5
    assert abs(got.pred_boxes.numpy() - outputs("resnet50")["boxes"]).max() < 1e-5
    assert model.config.id2label[1] == "person"
    assert len(model.config.id2label) == 91
    assert model.config.category_ids is None
    assert AutoImageProcessor.from_pretrained(output).size["shortest_edge"] == 800
    card = (output / "README.md").read_text()
    assert "43.1" in card
    assert "reported by the authors" in card


def test_help_names_every_variant_and_loads_nothing_heavy():
    variants = {ConversionSettings: PUBLISHED_VARIANTS, TrainingSettings: VARIANTS}
    for settings, names in variants.items():
        kinds = {option.name: option.kind for option in options(settings)}
        assert get_args(kinds["variant"]) == tuple(names)
    code = (
        "import runpy, sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        f"sys.argv = ['convert_checkpoint.py', '--help']; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "r101-dc5" in done.stdout


def test_variant_is_read_from_the_settings():
    tensors = released_state_dict("resnet50_dc5")
    assert config_of_checkpoint(tensors, {**ARGS, "dilation": True}).dilation
    assert config_of_checkpoint(tensors, None, "r50-dc5").dilation
    assert not config_of_checkpoint(tensors, ARGS).dilation
    with pytest.raises(ConversionError, match="--variant"):
        config_of_checkpoint(tensors, None)


@pytest.mark.parametrize(("name", "value"), [("pre_norm", True), ("sdg", False), ("random_refpoints_xy", True)])
def test_unsupported_settings_are_refused(name, value):
    with pytest.raises(ConversionError, match=f"`{name}` = {value}"):
        config_of_checkpoint(released_state_dict("resnet50"), {**ARGS, name: value})


def test_bare_state_dict(tmp_path):
    path = tmp_path / "bare.pth"
    torch.save(released_state_dict("resnet50"), path)
    tensors, args = read_checkpoint(path)
    assert args is None
    assert len(tensors) == len(released_state_dict("resnet50"))
    error = subprocess.run(
        [sys.executable, str(SCRIPT), str(path), str(tmp_path / "out")], capture_output=True, text=True, timeout=300
    )
    assert error.returncode == 2
    assert "--variant" in error.stderr
    assert "Traceback" not in error.stderr
    assert not (tmp_path / "out").exists()


def _changed(change) -> dict[str, torch.Tensor]:
    tensors = dict(released_state_dict("resnet50"))
    change(tensors)
    return tensors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("input_proj.bias"), "1 tensors are missing .*input_projection.bias"),
        (lambda t: t.update({"mask_head.weight": torch.zeros(1)}), "`mask_head.weight` does not exist in SAP-DETR"),
        (lambda t: t.update({"transformer.decoder.mask": torch.zeros(1)}), "`transformer.decoder.mask` does not exist"),
        (lambda t: t.update({"class_embed.3.layers.0.bias": torch.ones(256)}), "must be one shared tensor"),
        (lambda t: t.update({"obj_embed.bias": torch.zeros(2)}), r"has the shape \(2,\)"),
        (lambda t: t.update({"refpoint_embed.weight": torch.zeros(306, 2)}), "fixed grid of 17 x 18"),
        (lambda t: t.pop("bbox_embed.2.layers.0.bias"), "incomplete"),
    ],
)
def test_every_tensor_is_used_exactly_once(change, message):
    tensors = _changed(change)
    with pytest.raises(ConversionError, match=message):
        convert_state_dict(tensors, config_of_checkpoint(tensors, ARGS))


def test_deeper_backbone_is_not_silently_cut():
    with pytest.raises(ConversionError, match="are unexpected"):
        convert_state_dict(
            released_state_dict("resnet101"), config_of_checkpoint(released_state_dict("resnet101"), ARGS)
        )


def test_shared_box_heads():
    tensors = dict(released_state_dict("resnet50"))
    for name in tensors:
        source = re.sub(r"\b(bbox_embed|point_embed)\.\d+\.", r"\1.0.", name)
        tensors[name] = tensors[source]
    config = config_of_checkpoint(tensors, {**ARGS, "bbox_embed_diff_each_layer": False})
    assert config.share_box_heads
    converted = convert_state_dict(tensors, config)
    assert sum("side_heads" in name for name in converted) == 6


class _Attack:
    def __reduce__(self):
        return (Path.write_text, (Path("attacked"), "code ran"))


@pytest.mark.parametrize("protocol", ["zip", "plain pickle"])
def test_a_pickle_that_runs_code_is_refused(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "attack.pth"
    if protocol == "zip":
        torch.save({"model": _Attack()}, path)
    else:
        path.write_bytes(pickle.dumps({"model": _Attack()}))
    with pytest.raises(ConversionError, match="can run any code"):
        read_checkpoint(path)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("keep", [0, 100, 0.5])
def test_a_truncated_file_is_named(checkpoint, tmp_path, keep):
    content = checkpoint.read_bytes()
    path = tmp_path / "cut.pth"
    path.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(ConversionError, match=r"cut\.pth"):
        read_checkpoint(path)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint file"):
        read_checkpoint(tmp_path / "missing.pth")
    torch.save({"model": {"conv1.weight": torch.zeros(3)}}, tmp_path / "foreign.pth")
    with pytest.raises(ConversionError, match="holds no SAP-DETR model"):
        read_checkpoint(tmp_path / "foreign.pth")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="not empty"):
        convert_checkpoint(tmp_path / "foreign.pth", tmp_path / "full")
