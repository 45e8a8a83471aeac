"""Recipes: every one in the package is valid, texts stay as they are written, command lines win over them."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sap_detr_cli.main import main
from sap_detr_cli.options import options, parse
from sap_detr_cli.recipes import read_recipe, recipe_files, recipe_folder
from sap_detr_cli.settings.train import TrainingSettings
from sap_detr_hf.model.configuration_sap_detr import FURTHER_VARIANTS
from sap_detr_hf.weights.variants import config_of_variant

ROOT = Path(__file__).parents[2]
RECIPES = sorted(recipe_folder().glob("*.yaml"))
NEEDED = ["--variant", "r50", "--data", "coco"]


def test_help_answers_with_every_setting_and_its_reason():
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), "--help"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    words = " ".join(answer.split())
    for option in options(TrainingSettings):
        assert option.spelling in words
        assert option.reason.split(":")[0].split()[0] in words
    assert "[0.0001]" in words


def test_every_recipe_is_valid_and_the_published_ones_are_the_published_recipe():
    assert len(RECIPES) == 25
    published = {}
    for path in RECIPES:
        recipe = read_recipe(path)
        extra = [] if "variant" in recipe else ["--model", "some/model"]
        extra += [] if "data" in recipe else ["--data", "some/data"]
        settings = parse(TrainingSettings, [str(path), *extra])
        if settings.variant:
            config_of_variant(settings.variant, **settings.model_overrides)
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
        "coco_dino_r50_12e": ("dino-r50", 12, 11, 16),
        "coco_dino_r50_24e": ("dino-r50", 24, 20, 16),
        "coco_dino_r50_36e": ("dino-r50", 36, 30, 16),
        **{
            f"coco_{name.replace('-', '_')}_{epochs}e": (name, epochs, drop_epoch, 8 if "dc5" in name else 16)
            for name in FURTHER_VARIANTS
            for epochs, drop_epoch in ((12, 11), (36, 30), (50, 40))
        },
    }


@pytest.mark.parametrize("path", sorted((recipe_folder() / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_configurations_are_read_by_accelerate(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    written = yaml.safe_load(path.read_text())
    assert config.num_processes == written["num_processes"]
    recipe = parse(TrainingSettings, ["coco_r50_50e"])
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
    settings = parse(
        TrainingSettings, [str(recipe), "--epochs", "7", "--gradient-clip", "null", "--freeze", "[model.backbone]",
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
    assert parse(TrainingSettings, [str(again)]) == settings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [*NEEDED, "--learning_rat", "1"],
            "`learning_rat`, which is not a setting: the nearest one is `learning_rate`",
        ),
        ([*NEEDED, "--epoch=1"], "the nearest one is `epochs`"),
        ([*NEEDED, "more"], None),
        ([*NEEDED, "--epochs", "many"], "`epochs` = 'many' must be a whole number"),
        ([*NEEDED, "--epochs", "0"], "`epochs` = 0 must be at least 1"),
        ([*NEEDED, "--epochs", "true"], "must be a whole number"),
        ([*NEEDED, "--tf32=1"], "must be true or false"),
        ([*NEEDED, "--learning_rate", "fast"], "must be a number"),
        ([*NEEDED, "--schedule", "linear"], "must be one of step, cosine, constant"),
        ([*NEEDED, "--freeze=[a: 1]"], "must be text"),
        ([*NEEDED, "--freeze", "[null]"], "must be text"),
        ([*NEEDED, "--model_overrides", "{a: "], "cannot be read"),
        ([*NEEDED, "--ema_decay", "1.5"], "between 0 and 1"),
        ([*NEEDED, "--gradient_clip", "0"], "above 0"),
        ([*NEEDED, "--model", "x"], "not model and variant"),
        (["--data", "coco"], "not none of them"),
        (["--variant", "r50"], "Give the training data"),
    ],
)
def test_wrong_command_lines_are_named(arguments, message):
    with pytest.raises((ValueError, OSError), match=message):
        parse(TrainingSettings, arguments)


def test_wrong_recipes_are_named(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    for text, message in [
        ("lerning_rate: 1", "`lerning_rate`, which is not a setting: the nearest one is `learning_rate`"),
        ("- a", "must hold `setting: value` lines"),
        ("a: [", "not valid YAML"),
    ]:
        recipe.write_text(text)
        with pytest.raises(ValueError, match=message):
            parse(TrainingSettings, [str(recipe)])


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
    with pytest.raises(ValueError, match="give `val_annotations`"):
        TrainingSettings(variant="r50", data="train.json")
    TrainingSettings(variant="r50", data="train.json", evaluation_epochs=0)
    TrainingSettings(variant="r50", data="train.json", val_annotations="val.json")


# A plain word that YAML 1.1 makes something else of; None: YAML has a meaning for it, and quotes are asked for
WORDS = {
    "2024-05-01": "2024-05-01", "007": "007", "1_000": "1_000", "12:30": "12:30", "1e3": "1e3", "0x1F": "0x1F",
    "on": "on", "no": "no", "true": "true", "3.10": "3.10", ".inf": ".inf", "-1": "-1", "set #2": "set", "it's": "it's",
    "ü猫": "ü猫", "C:\\data": "C:\\data", "a, b": "a, b", "a: b": None, "[new]": None, "{x}": None, "*.d": None,
    "&x": None, "%d": None, "- x": None, "@home": None, "!x": None, "!!str": None, "'q": None, "|": None, ">": None,
    "`x`": None,
}  # fmt: skip


@pytest.mark.parametrize(("word", "expected"), WORDS.items(), ids=WORDS)
def test_texts_in_a_recipe_stay_as_they_are_written_or_are_refused(tmp_path, word, expected):
    recipe = tmp_path / "recipe.yaml"
    for name in ("output_dir", "resume"):
        recipe.write_text(f"{name}: {word}\n", encoding="utf-8")
        if expected is None:
            with pytest.raises(ValueError, match=re.escape(str(recipe))):
                read_recipe(recipe)
        else:
            assert read_recipe(recipe) == {name: expected}


@pytest.mark.parametrize("text", [*WORDS, "null", "~", "1.0e-05", "a\nb", "x ", '"', "#2", "y", "=", "<<", "1e-3"])
def test_settings_written_and_read_are_the_same(tmp_path, text):
    overrides = {"text": text, "numbers": [1, 1e-5, 1e20], "none": None, "truth": [True, False], "010": {text: "x"}}
    settings = TrainingSettings(
        variant="r50", data=text, output_dir=text, freeze=[text, "b"], model_overrides=overrides, learning_rate=1e-5
    )
    recipe = tmp_path / "settings.yaml"
    recipe.write_text(settings.to_yaml(), encoding="utf-8")
    assert parse(TrainingSettings, [str(recipe)]) == settings


def test_values_that_are_no_text_are_read_by_their_type(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "\ufeffepochs: 010\nlearning_rate: '1e-3'\ncompile: yes\ntf32: OFF\nmixed_precision: no\n"
        "freeze: [007, on, 'a b']\nmodel_overrides: {dropout: 1e-1, tag: 2024-05-01, flag: on}\ngradient_clip:\n",
        encoding="utf-8",
    )
    assert read_recipe(recipe) == {
        "epochs": 10, "learning_rate": 1e-3, "compile": True, "tf32": False, "mixed_precision": "no",
        "freeze": ["007", "on", "a b"], "model_overrides": {"dropout": 0.1, "tag": "2024-05-01", "flag": "on"},
        "gradient_clip": None,
    }  # fmt: skip
    for text, message in (
        ("epochs: 12:30", "`epochs` = '12:30' must be a whole number"),
        ("epochs: 3\nseed: 1\nepochs: 4", "sets `epochs` twice"),
        ("output_dir:", "`output_dir` = None must be text"),
        ("freeze: model", "`freeze` = 'model' must be a list"),
        ("data: &x y\ncache_dir: *x", "'&x y' has a meaning in YAML: put quotes around it"),
        ("epochs: 3\n---\nepochs: 4", "not valid YAML"),
        ("", "must hold `setting: value` lines"),
    ):
        recipe.write_text(text)
        with pytest.raises(ValueError, match=re.escape(message)):
            read_recipe(recipe)


def test_recipe_by_name_or_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("variant: r50\ndata: coco\n")
    assert parse(TrainingSettings, ["mine.yaml", "--epochs", "3"]).data == "coco"
    assert parse(TrainingSettings, ["--epochs", "3", "finetune", "--model", "m", "--data", "d"]).ema_decay == 0.999
    for name in ("fintune", "finetune.yaml", "recipes/finetune.yaml"):
        with pytest.raises(
            FileNotFoundError, match=f"{name} is neither a file nor one of the recipes bccd, .*finetune"
        ):
            read_recipe(name)


def test_verb_lists_and_copies(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(recipe_files())
    assert all(len(line.split()) > 3 for line in lines)
    assert main(["recipes", "copy", "finetune"]) == 0
    assert Path("finetune.yaml").read_text() == (recipe_folder() / "finetune.yaml").read_text()
    assert "sap-detr train finetune.yaml" in capsys.readouterr().out
    Path("finetune.yaml").write_text("mine")
    assert main(["recipes", "copy", "finetune"]) == 2
    assert "finetune.yaml exists already" in capsys.readouterr().err
    assert Path("finetune.yaml").read_text() == "mine"
    assert main(["recipes", "copy", "accelerate/gpu_4", "other.yaml"]) == 0
    assert "num_processes: 4" in Path("other.yaml").read_text()
    assert "accelerate launch --config_file other.yaml" in capsys.readouterr().out
    Path("folder").mkdir()
    assert main(["recipes", "copy", "demo", "folder"]) == 0
    assert Path("folder/demo.yaml").exists()
    for words, message in (
        (["copy"], "Give the name of the recipe to copy"),
        (["copy", "fine"], "nor one of the recipes"),
        (["list", "finetune"], "Give the name of the recipe to copy"),
        (["cpy", "finetune"], "must be one of list, copy"),
        (["copy", "demo", "no/such/folder/demo.yaml"], "No such file"),
    ):
        assert main(["recipes", *words]) == 2
        assert message in capsys.readouterr().err
