"""Recipes and command lines: types, unknown keys, and that every recipe in the repository is valid."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sap_detr_hf import SapDetrConfig
from sap_detr_hf.model.configuration_sap_detr import FURTHER_VARIANTS
from sap_detr_hf.training.settings import TrainingSettings, field_reasons, read_recipe, settings_from_arguments

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
NEEDED = ["--variant", "r50", "--data", "coco"]


def test_help_answers_with_every_setting_and_its_reason():
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), "--help"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    words = " ".join(answer.split())
    for name, reason in field_reasons().items():
        assert f"--{name}" in words
        assert reason.split(":")[0].split()[0] in words
    assert "[0.0001]" in words


def test_every_recipe_is_valid_and_the_published_ones_are_the_published_recipe():
    assert len(RECIPES) == 21
    published = {}
    for path in RECIPES:
        recipe = read_recipe(path)
        extra = [] if "variant" in recipe else ["--model", "some/model"]
        extra += [] if "data" in recipe else ["--data", "some/data"]
        settings = settings_from_arguments([str(path), *extra])
        if settings.variant:
            SapDetrConfig.from_variant(settings.variant, **settings.model_overrides)
        if path.stem.startswith("coco_"):
            published[path.stem] = (settings.variant, settings.epochs, settings.drop_epoch, settings.effective_batch)
            assert settings.augmentation == "released"
            assert settings.categories == "coco91"
            defaults = dataclasses.asdict(TrainingSettings(variant="r50", data="x"))
            for name in ("learning_rate", "backbone_learning_rate", "weight_decay", "gradient_clip", "warmup_steps",
                         "warmup_start", "drop_factor", "seed", "schedule", "ema_decay", "freeze"):  # fmt: skip
                assert getattr(settings, name) == defaults[name]
    assert published == {
        "coco_r50_50e": ("r50", 50, 40, 16),
        "coco_r50_dc5_50e": ("r50-dc5", 50, 40, 8),
        "coco_r101_50e": ("r101", 50, 40, 16),
        "coco_r101_dc5_50e": ("r101-dc5", 50, 40, 8),
        "coco_r50_12e": ("r50", 12, 11, 16),
        "coco_r50_36e": ("r50", 36, 30, 16),
        **{
            f"coco_{name.replace('-', '_')}_{epochs}e": (name, epochs, drop_epoch, 8 if "dc5" in name else 16)
            for name in FURTHER_VARIANTS
            for epochs, drop_epoch in ((12, 11), (36, 30), (50, 40))
        },
    }


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_configurations_are_read_by_accelerate(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    written = yaml.safe_load(path.read_text())
    assert config.num_processes == written["num_processes"]
    recipe = settings_from_arguments([str(ROOT / "recipes" / "coco_r50_50e.yaml")])
    if config.num_processes == 4:
        assert recipe.accumulation(4) == 1
    elif config.num_processes == 8:
        assert dataclasses.replace(recipe, images_per_device=2).accumulation(8) == 1
    else:
        assert recipe.accumulation(1) == 4


def test_command_line_wins_over_recipe_and_values_are_typed(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    # YAML reads 1e-3 as text, 0 as an integer, and a bare `no` as False
    recipe.write_text(
        "variant: r50\ndata: coco\nlearning_rate: 1e-3\nweight_decay: 0\nmixed_precision: no\nepochs: 3\n"
    )
    settings = settings_from_arguments(
        [str(recipe), "--epochs", "7", "--gradient-clip", "null", "--freeze", "[model.backbone]",
         "--model_overrides={dropout: 0.1}", "--tf32", "false"]
    )  # fmt: skip
    assert (settings.epochs, settings.learning_rate, settings.weight_decay) == (7, 1e-3, 0.0)
    assert isinstance(settings.weight_decay, float)
    assert settings.mixed_precision == "no"
    assert settings.gradient_clip is None
    assert settings.freeze == ["model.backbone"]
    assert settings.model_overrides == {"dropout": 0.1}
    assert settings.tf32 is False
    again = tmp_path / "settings.yaml"
    again.write_text(settings.to_yaml())
    assert settings_from_arguments([str(again)]) == settings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*NEEDED, "--learning_rat", "1"], "`learning_rat`, which is no setting: the nearest one is `learning_rate`"),
        ([*NEEDED, "--epoch=1"], "the nearest one is `epochs`"),
        ([*NEEDED, "more"], None),
        ([*NEEDED, "--epochs", "many"], "`epochs` = 'many' must be a whole number"),
        ([*NEEDED, "--epochs", "0"], "`epochs` = 0 must be at least 1"),
        ([*NEEDED, "--epochs", "true"], "must be a whole number"),
        ([*NEEDED, "--tf32", "1"], "must be true or false"),
        ([*NEEDED, "--learning_rate", "fast"], "must be a number"),
        ([*NEEDED, "--schedule", "linear"], "must be one of step, cosine, constant"),
        ([*NEEDED, "--freeze", "model.backbone"], "must be a list"),
        ([*NEEDED, "--freeze", "[1]"], "list of str"),
        ([*NEEDED, "--model_overrides", "{a: "], "cannot be read"),
        ([*NEEDED, "--ema_decay", "1.5"], "between 0 and 1"),
        ([*NEEDED, "--gradient_clip", "0"], "above 0"),
        ([*NEEDED, "--model", "x"], "not both"),
        (["--data", "coco"], "not neither"),
        (["--variant", "r50"], "Name the training data"),
    ],
)
def test_wrong_command_lines_are_named(arguments, message):
    with pytest.raises((ValueError, OSError), match=message):
        settings_from_arguments(arguments)


def test_wrong_recipes_are_named(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    for text, message in [
        ("lerning_rate: 1", "`lerning_rate`, which is no setting: the nearest one is `learning_rate`"),
        ("- a", "must hold `setting: value` lines"),
        ("a: [", "not valid YAML"),
    ]:
        recipe.write_text(text)
        with pytest.raises(ValueError, match=message):
            settings_from_arguments([str(recipe)])


def test_effective_batch_is_checked():
    settings = TrainingSettings(variant="r50", data="coco", effective_batch=16, images_per_device=2)
    assert [settings.accumulation(processes) for processes in (1, 2, 4, 8)] == [8, 4, 2, 1]
    with pytest.raises(ValueError, match=r"16, but 3 process\(es\) x `images_per_device` = 2"):
        settings.accumulation(3)
    with pytest.raises(ValueError, match="is 32"):
        settings.accumulation(16)
    with pytest.raises(ValueError, match="`gradient_accumulation` = 3 is 6"):
        dataclasses.replace(settings, gradient_accumulation=3).accumulation(1)


def test_one_coco_file_is_not_training_and_validation_data():
    with pytest.raises(ValueError, match="name `val_annotations`"):
        TrainingSettings(variant="r50", data="train.json")
    TrainingSettings(variant="r50", data="train.json", evaluation_epochs=0)
    TrainingSettings(variant="r50", data="train.json", val_annotations="val.json")
