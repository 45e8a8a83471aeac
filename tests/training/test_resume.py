"""A resumed run applies changed settings and says so, or refuses them; a begun epoch goes on with its own images."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from tiny_training import TINY_MODEL, metrics, newest_state, run_here, write_recipe

from sap_detr_hf.demo.digits import make_digits
from sap_detr_hf.training import loop
from sap_detr_hf.training.batches import ProcessBatchSampler
from sap_detr_hf.training.origin import compare_origins


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run after its first step, of three in an epoch: its folder, `recipe.yaml` and `digits` beside it."""
    folder = tmp_path_factory.mktemp("begun")
    make_digits(folder / "digits", 10, 2, (64, 64))
    recipe = write_recipe(folder / "recipe.yaml", data=str(folder / "digits"), group_by_aspect_ratio=True, max_steps=1)
    assert run_here(recipe, "--output_dir", folder / "run") == 0
    return folder


@pytest.fixture
def go_on(begun, tmp_path, capfd):
    """Resumes a copy of the run with other settings; returns the exit code and the lines of the log."""

    def resume(*changes):
        if not (tmp_path / "run").exists():
            shutil.copytree(begun / "run", tmp_path / "run")
        capfd.readouterr()
        code = run_here(begun / "recipe.yaml", "--output_dir", tmp_path / "run", "--resume", "auto", *changes)
        return code, capfd.readouterr().err.splitlines()

    return resume


def test_rates_decay_and_schedule_are_applied_and_said(go_on, tmp_path):
    changes = {"learning_rate": 5e-4, "backbone_learning_rate": 2e-6, "weight_decay": 0.5, "schedule": "constant",
               "warmup_steps": 0, "gradient_clip": 0.02, "max_steps": 3}  # fmt: skip
    code, log = go_on(*(text for name, value in changes.items() for text in (f"--{name}", value)))
    assert code == 0, log
    assert "learning_rate 0.001 -> 0.0005 from step 2 on" in log
    assert "weight_decay 0.0001 -> 0.5 from step 2 on" in log
    assert "schedule step -> constant from step 2 on" in log
    assert sum(line.endswith("from step 2 on") for line in log) == len(changes)
    assert [line["learning_rate"] for line in metrics(tmp_path / "run")] == [1e-6, 5e-4, 5e-4]
    groups = newest_state(tmp_path / "run")["optimizer"]["param_groups"]
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(5e-4, 0.5), (2e-6, 0.5)]
    assert go_on("--max_steps", 3)[1].count("learning_rate 0.0005 -> 0.001 from step 4 on") == 1  # and back again


def test_unchanged_settings_are_not_mentioned(go_on):
    code, log = go_on()
    assert code == 0
    assert not any(" -> " in line for line in log)
    assert any(line.startswith("Go on after step 1 from ") for line in log)


def test_settings_that_cannot_be_applied_are_refused_with_both_values(go_on, begun, tmp_path):
    def annotations(name, change):
        coco = json.loads((begun / "digits" / "annotations" / "instances_train.json").read_text())
        change(coco)
        (tmp_path / name).write_text(json.dumps(coco))
        return "--train_annotations", tmp_path / name, "--train_images", begun / "digits" / "images" / "train"

    def rename(coco):
        coco["categories"][3]["name"] = "quatre"

    def swap(coco):
        first, second = coco["categories"][:2]
        first["name"], second["name"] = second["name"], first["name"]

    def reverse(coco):
        coco["images"].reverse()

    def message(*changes):
        code, log = go_on(*changes)
        assert code == 2, log
        assert log[-1].endswith("start a new run in another `output_dir`."), log[-1]
        return log[-1]

    assert "id2label.3 = '3', this run has 'quatre'" in message(*annotations("renamed.json", rename))
    assert "id2label.0 = '0', this run has '1'" in message(*annotations("swapped.json", swap))
    assert "checksum of the image ids" in message(*annotations("reversed.json", reverse))
    fields = json.dumps({**TINY_MODEL, "query_grid": [2, 8]})
    assert "query_grid = [4, 4], this run has [2, 8]" in message("--model_overrides", fields)
    fields = json.dumps({**TINY_MODEL, "dropout": 0.3})
    assert "dropout = 0.0, this run has 0.3" in message("--model_overrides", fields)
    refusal = message("--freeze", "[model.encoder]")
    assert "`freeze` = [], which leaves" in refusal
    assert "`freeze` = ['model.encoder'], which leaves" in refusal
    assert "ema = False, this run has True" in message("--ema_decay", 0.9)
    state = newest_state(tmp_path / "run")
    assert state["progress"]["step"] == 1


def test_another_start_is_refused_unless_its_weights_are_the_same(go_on, begun, tmp_path):
    tuning = ("--variant", "null", "--model_overrides", "{}", "--model", tmp_path / "copy")
    shutil.copytree(begun / "run", tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoints", "last"))
    code, log = go_on(*tuning)
    assert code == 2
    assert f"model = None, this run has {tmp_path / 'copy'}, which has other weights" in log[-1]


@pytest.mark.parametrize(("name", "other"), [("init_from", "another/detector"), ("class_mapping", {"1": "one"})])
def test_every_setting_of_the_start_is_compared(begun, name, other):
    origin = newest_state(begun / "run")["origin"]
    now = {**origin, "initial weights": "others", "settings": {**origin["settings"], name: other}}
    with pytest.raises(
        ValueError, match=f"was started from {name} = .*{re.escape(str(other))}, which has other weights"
    ):
        compare_origins(origin, now)
    assert compare_origins(origin, {**now, "initial weights": origin["initial weights"]})[0].startswith(name)


@pytest.mark.parametrize("other", [(1, False), (1, True), (4, True), (2, False)])
def test_every_image_of_a_begun_epoch_comes_once(go_on, monkeypatch, begun, tmp_path, other):
    images, take_step = [], loop.take_step

    def watched(run, batches, total_boxes):
        images.extend(int(label["image_id"]) for batch in batches for label in batch["labels"])
        return take_step(run, batches, total_boxes)

    monkeypatch.setattr(loop, "take_step", watched)
    assert run_here(begun / "recipe.yaml", "--output_dir", tmp_path / "first") == 0
    code, log = go_on("--images_per_device", other[0], "--group_by_aspect_ratio", other[1], "--max_steps", 6)
    assert code == 0, log
    assert len(images) == 6 * 4
    assert sorted(images[:10]) == sorted(images[12:22]) == list(range(1, 11))


def test_the_order_of_a_begun_epoch_does_not_depend_on_the_batches():
    wide = np.arange(21) % 3 != 0
    order = {"seed": 42, "wide": wide}
    begun = ProcessBatchSampler(21, 1, 0, 1, images_per_device=4, group_size=4, **order)
    for processes, size, group_size in [(1, 1, 1), (2, 2, 2), (1, 4, 0), (4, 1, 0)]:
        shares = []
        for process in range(processes):
            sampler = ProcessBatchSampler(
                21, 4 // size // processes, process, processes, images_per_device=size, group_size=group_size, **order
            )
            sampler.go_on_with_epoch(0, begun.group_size(0))
            sampler.start(0, 4)
            shares += [image for batch in sampler for image in batch]
        first = [image for batch in list(begun)[:4] for image in batch]
        assert sorted(first + shares) == sorted(image for batch in begun for image in batch)
        assert sampler.group_size(1) == group_size


def test_a_checkpoint_without_its_settings_is_refused(go_on, tmp_path):
    go_on()
    path = tmp_path / "run" / "checkpoints" / "step_00000001.pt"
    state = torch.load(path, weights_only=True)
    del state["origin"]["settings"]
    torch.save(state, path)
    code, log = go_on()
    assert code == 2
    assert "The checkpoint does not say its settings: start a new run." in log[-1]
