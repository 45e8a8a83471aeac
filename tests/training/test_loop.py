"""`sap-detr train` run for real: killed, resumed, on two processes, with bad images, bad losses and a full disk."""

import errno
import json
import os
import shutil
import signal

import pytest
import torch
from tiny_training import (
    TINY_MODEL,
    differences,
    finish,
    metrics,
    newest_state,
    run_here,
    signal_after,
    start,
    write_recipe,
)
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from sap_detr_hf.demo.digits import make_digits
from sap_detr_hf.training import checkpoints


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    make_digits(folder, 10, 4, (96, 96))
    return folder


def changed_annotations(digits, name, change):
    """A copy of the training annotations after `change(coco)`."""
    coco = json.loads((digits / "annotations" / "instances_train.json").read_text())
    change(coco)
    path = digits / f"{name}.json"
    path.write_text(json.dumps(coco))
    return {"train_annotations": str(path), "train_images": str(digits / "images" / "train")}


def keep_boxes(per_image):
    """Keeps only the first boxes of the images named in `per_image`: image id -> number."""

    def change(coco):
        kept, seen = [], {}
        for annotation in coco["annotations"]:
            image_id = annotation["image_id"]
            seen[image_id] = seen.get(image_id, 0) + 1
            if seen[image_id] <= per_image.get(image_id, 10**6):
                kept.append(annotation)
        coco["annotations"] = kept

    return change


def test_killed_and_resumed_equals_uninterrupted(digits, tmp_path, monkeypatch):
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        data=str(digits),
        model_overrides={**TINY_MODEL, "dropout": 0.1},
        augmentation="flip",
        group_by_aspect_ratio=True,
        epochs=8,  # 3 steps each, the last one of an epoch filled up
        schedule="cosine",
        ema_decay=0.9,
        workers=1,
        evaluation_epochs=3,
        checkpoint_steps=1,
        tracker="tensorboard",
    )
    whole = start(recipe, "--output_dir", tmp_path / "whole")
    parts = start(recipe, "--output_dir", tmp_path / "parts")
    signal_after(parts, signal.SIGTERM, tmp_path / "parts", 1)
    code, output = finish(parts)
    assert code == 0, output
    assert "state saved: continue with `--resume auto`" in output
    assert "Traceback" not in output
    stopped = newest_state(tmp_path / "parts")["progress"]["step"]

    parts = start(recipe, "--output_dir", tmp_path / "parts", "--resume", "auto")
    signal_after(parts, signal.SIGKILL, tmp_path / "parts", stopped + 2)
    assert finish(parts)[0] == -signal.SIGKILL
    assert newest_state(tmp_path / "parts")["progress"]["step"] < 24

    assert run_here(recipe, "--output_dir", tmp_path / "parts", "--resume", "auto") == 0
    code, output = finish(whole)
    assert code == 0, output
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    states = [newest_state(tmp_path / name) for name in ("whole", "parts")]
    for state in states:
        assert state["progress"].pop("metrics_bytes")  # differs with the clock's numbers
        assert state["progress"]["step"] == 24
    assert differences(*states) == []

    monkeypatch.setattr("sap_detr_hf.training.loop.evaluate", None)  # a finished run has nothing to do
    assert run_here(recipe, "--output_dir", tmp_path / "whole", "--resume", "auto") == 0
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert len(list((tmp_path / "whole" / "checkpoints").iterdir())) == 2
    assert list((tmp_path / "whole").rglob("events.out.tfevents*"))
    assert (tmp_path / "whole" / "curves.png").read_bytes().startswith(b"\x89PNG")

    # The finished folder is a model directory, and the random state is part of what was compared
    model = AutoModelForObjectDetection.from_pretrained(tmp_path / "parts")
    assert model.config.id2label[7] == "7"
    assert model.config.category_ids == list(range(1, 11))
    assert AutoImageProcessor.from_pretrained(tmp_path / "parts").size["shortest_edge"] == 64
    assert len(states[0]["random"]) == 1


def test_two_processes_equal_one_also_with_an_empty_process(digits, tmp_path):
    # Images 1-5 have no box: with this seed a process meets no box in 7 steps, and every step has at least 2
    data = changed_annotations(digits, "half_empty", keep_boxes(dict.fromkeys(range(1, 6), 0)))
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        **data,
        model_overrides={**TINY_MODEL, "freeze_backbone_batch_norm": True},
        epochs=3,
        seed=47,
        evaluation_epochs=3,
        val_annotations=str(digits / "annotations" / "instances_val.json"),
        val_images=str(digits / "images" / "val"),
        ema_decay=0.5,
    )
    two = start(recipe, "--output_dir", tmp_path / "two", processes=2)
    assert run_here(recipe, "--output_dir", tmp_path / "one") == 0
    assert run_here(recipe, "--output_dir", tmp_path / "joined", "--images_per_device", "4") == 0
    code, output = finish(two)
    assert code == 0, output
    for other in ("two", "joined"):
        for expected, found in zip(metrics(tmp_path / "one"), metrics(tmp_path / other), strict=True):
            assert found.keys() == expected.keys()
            # class_error is a mean of each batch's percentage; undefined APs are null
            names = [name for name, value in expected.items() if name != "class_error" and value is not None]
            assert [found[name] for name in names] == pytest.approx(
                [expected[name] for name in names], rel=2e-5, abs=1e-6
            )
    weights = [newest_state(tmp_path / name)["ema"] for name in ("one", "two")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-4)


def test_a_loss_that_is_not_finite_stops_all_processes_together(digits, tmp_path):
    data = changed_annotations(digits, "one_empty", keep_boxes({4: 0}))
    recipe = write_recipe(
        tmp_path / "recipe.yaml", **data, augmentation="tiny_training:nan_in_one_image", checkpoint_steps=1, epochs=1
    )
    code, output = finish(start(recipe, "--output_dir", tmp_path / "run", processes=2))
    assert code != 0
    messages = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(messages) == 1, output
    assert "is not finite" in messages[0]
    assert "the input pixel_values" in messages[0]
    image_ids = messages[0].split("images ")[1].split(":")[0].split(", ")
    assert "4" in image_ids
    assert len(image_ids) == 2  # those of the process's batch
    assert "training.py" not in output  # no traceback of any process (the launcher has its own)
    step = newest_state(tmp_path / "run")["progress"]["step"] if (tmp_path / "run" / "checkpoints").exists() else 0
    assert len(metrics(tmp_path / "run")) == step
    assert f"in step {step + 1}:" in messages[0]
    if step:
        assert all(torch.isfinite(tensor).all() for tensor in newest_state(tmp_path / "run")["model"].values())


def test_a_broken_image_stops_all_processes_together(digits, tmp_path):
    def rename(coco):
        coco["images"][6]["file_name"] = "broken.jpg"

    intact = (digits / "images" / "train" / "000001.jpg").read_bytes()
    (digits / "images" / "train" / "broken.jpg").write_bytes(intact[:300])
    recipe = write_recipe(tmp_path / "recipe.yaml", **changed_annotations(digits, "broken", rename), workers=1)
    code, output = finish(start(recipe, "--output_dir", tmp_path / "run", processes=2))
    assert code != 0
    messages = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(messages) == 1, output
    assert "broken.jpg" in messages[0]
    assert "Traceback" not in messages[0]
    assert "training.py" not in output


def test_full_disk_is_reported_and_the_old_checkpoint_stays(digits, tmp_path, monkeypatch, capfd):
    recipe = write_recipe(tmp_path / "recipe.yaml", data=str(digits), epochs=1, checkpoint_steps=1, keep_checkpoints=9)
    write = checkpoints._save_tensors

    def full_after_the_first(state, path):
        if state["progress"]["step"] > 1:
            path.write_bytes(b"half a checkpoint")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(state, path)

    monkeypatch.setattr(checkpoints, "_save_tensors", full_after_the_first)
    assert run_here(recipe, "--output_dir", tmp_path / "run") == 0
    output = capfd.readouterr().err
    assert "Checkpoint of step 2 not saved" in output
    assert "No space left on device" in output
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000001.pt"]
    monkeypatch.undo()
    whole = metrics(tmp_path / "run")
    assert run_here(recipe, "--output_dir", tmp_path / "run", "--resume", "auto") == 0
    assert metrics(tmp_path / "run") == whole


def test_fine_tuning_with_other_classes(digits, tmp_path, capfd):
    def letters(coco):
        for category in coco["categories"]:
            category["name"] = "letter " + "abcdefghij"[category["id"] - 1]

    def two_classes(coco):
        coco["categories"] = [{"id": 30, "name": "low"}, {"id": 70, "name": "high"}]
        for annotation in coco["annotations"]:
            annotation["category_id"] = 30 if annotation["category_id"] <= 5 else 70

    base = tmp_path / "base"
    recipe = write_recipe(tmp_path / "base.yaml", data=str(digits), max_steps=1)
    assert run_here(recipe, "--output_dir", base) == 0
    tuning = {"model": str(base), "variant": None, "model_overrides": {}, "max_steps": 2, "learning_rate": 0.0,
              "backbone_learning_rate": 0.0}  # fmt: skip
    source = AutoModelForObjectDetection.from_pretrained(base).state_dict()

    recipe = write_recipe(tmp_path / "letters.yaml", **changed_annotations(digits, "letters", letters), **tuning)
    assert run_here(recipe, "--output_dir", tmp_path / "refused") == 2
    message = capfd.readouterr().err.splitlines()[-1]
    assert "letter a" in message
    assert "ignore_mismatched_sizes" in message
    assert not (tmp_path / "refused" / "metrics.jsonl").exists()

    wanted = ("--ignore_mismatched_sizes", "true")
    assert run_here(recipe, "--output_dir", tmp_path / "letters", *wanted) == 0
    model = AutoModelForObjectDetection.from_pretrained(tmp_path / "letters")
    assert model.config.id2label[0] == "letter a"
    renewed = model.state_dict()
    last = [name for name in source if name.startswith("class_heads.") and source[name].shape[0] == 10]
    assert len(last) == 4
    # Ten classes as before, but others: the old head must not stay
    assert not any(torch.equal(source[name], renewed[name]) for name in last if name.endswith("weight"))
    kept = [name for name, _ in model.named_parameters() if name not in last]
    assert all(torch.equal(source[name], renewed[name]) for name in kept)

    recipe = write_recipe(tmp_path / "two.yaml", **changed_annotations(digits, "two", two_classes), **tuning)
    assert run_here(recipe, "--output_dir", tmp_path / "two", *wanted, "--freeze", "[model.backbone]") == 0
    model = AutoModelForObjectDetection.from_pretrained(tmp_path / "two")
    assert model.config.category_ids == [30, 70]
    assert model.config.id2label == {0: "low", 1: "high"}
    assert model.class_heads[0].state_dict()["layers.2.bias"].shape == (2,)


@pytest.mark.parametrize("change", [{"gradient_checkpointing": True}, {"mixed_precision": "bf16"}])
def test_precision_and_memory_settings_keep_the_loss(digits, tmp_path, change):
    recipe = write_recipe(tmp_path / "recipe.yaml", data=str(digits), max_steps=2)
    assert run_here(recipe, "--output_dir", tmp_path / "plain") == 0
    changed = [text for name, value in change.items() for text in (f"--{name}", str(value))]
    assert run_here(recipe, "--output_dir", tmp_path / "changed", *changed) == 0
    tolerance = 3e-2 if "mixed_precision" in change else 1e-5
    for expected, found in zip(metrics(tmp_path / "plain", "loss"), metrics(tmp_path / "changed", "loss"), strict=True):
        assert found == pytest.approx(expected, rel=tolerance)


def test_overfitting_and_early_stopping(digits, tmp_path, capfd):
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        data=str(digits),
        overfit_batches=1,
        epochs=40,
        evaluation_epochs=1,
        early_stopping=2,
        learning_rate=0.0,
        backbone_learning_rate=0.0,
        model_overrides={**TINY_MODEL, "freeze_backbone_batch_norm": True},
    )
    assert run_here(recipe, "--output_dir", tmp_path / "run") == 0
    assert "status stopped early  step 4" in capfd.readouterr().out  # not counted: step 2, within the warm-up
    losses = [line["loss"] for line in metrics(tmp_path / "run") if "loss" in line]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-5)  # the same four images again and again


def test_refusals_before_the_first_step(digits, tmp_path, capfd):
    recipe = write_recipe(tmp_path / "recipe.yaml", data=str(digits), max_steps=1)
    output = ("--output_dir", tmp_path / "run")

    def message(*arguments):
        assert run_here(recipe, *output, *arguments) == 2
        return capfd.readouterr().err.splitlines()[-1]

    assert "change one of them" in message("--effective_batch", "3")
    assert "model.backbone" in message("--freeze", "[backbone]")
    assert "would keep the random weights of the backbone" in message("--freeze", "[model.backbone]")
    assert "fewer than one effective batch" in message("--effective_batch", "16", "--drop_last", "true")
    assert "There is no checkpoint" in message("--resume", tmp_path / "none.pt")
    assert "nowhere" in message("--data", tmp_path / "nowhere")
    assert "`tracker` = 'tensorbord' is not installed" in message("--tracker", "tensorbord")
    assert run_here(recipe, *output) == 0
    written = (tmp_path / "run" / "settings.yaml").read_text()
    assert "holds checkpoints of an earlier run" in message("--epochs", "9")
    assert (tmp_path / "run" / "settings.yaml").read_text() == written
    assert "seed = 42" in message("--resume", "auto", "--seed", "1")
    shutil.move(tmp_path / "run" / "checkpoints", tmp_path / "elsewhere")
    for options in ([], ["--resume", "auto"], ["--resume", next((tmp_path / "elsewhere").iterdir())]):
        assert "holds a model, which training would replace" in message(*options)
