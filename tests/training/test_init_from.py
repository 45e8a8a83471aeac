"""Training from another detector's weights, by the setting and from a warm-started directory, through to the card."""

import pytest
import torch
from source_detectors import save_source
from tiny_training import run_here, write_recipe
from transformers import AutoImageProcessor, AutoModelForObjectDetection, ConditionalDetrImageProcessorPil

from sap_detr_cli.main import main
from sap_detr_cli.settings.train import TrainingSettings
from sap_detr_hf.demo.digits import make_digits
from sap_detr_hf.hub.model_card import CardSources, metadata, model_card
from sap_detr_hf.weights.warm_start import warm_start, warm_start_model


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    make_digits(folder, 6, 2, (96, 96))
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    model = save_source(folder, "dab-detr")
    ConditionalDetrImageProcessorPil(image_mean=[0.4, 0.5, 0.6]).save_pretrained(folder)
    return model.model.state_dict(), folder


def test_trains_resumes_and_evaluates(digits, source, tmp_path, capfd):
    theirs, folder = source
    still = {"learning_rate": 0.0, "backbone_learning_rate": 0.0, "evaluation_epochs": 1}
    changes = {
        "variant": None,
        "model_overrides": {"query_grid": [4, 4]},
        "init_from": str(folder),
        "data": str(digits),
    }
    recipe = write_recipe(tmp_path / "recipe.yaml", **changes, **still)
    output = tmp_path / "run"
    assert run_here(recipe, "--output_dir", output, "--max_steps", "1") == 0
    assert "| encoder.layers.*.ffn.fc1 | encoder.layers.*.fc1 |" in capfd.readouterr().err
    assert run_here(recipe, "--output_dir", output, "--max_steps", "2", "--resume", "auto") == 0
    model = AutoModelForObjectDetection.from_pretrained(output)
    assert len(model.config.id2label) == 10
    ours = model.model.state_dict()
    assert torch.equal(ours["encoder.layers.1.ffn.fc1.weight"], theirs["encoder.layers.1.fc1.weight"])
    processor = AutoImageProcessor.from_pretrained(output)
    assert list(processor.image_mean) == [0.4, 0.5, 0.6]
    assert processor.size["shortest_edge"] == 64
    assert '"AP"' in (output / "metrics.jsonl").read_text()


def test_a_deformable_detr_becomes_a_sap_dino_detr_that_trains_and_resumes(digits, tmp_path):
    theirs = save_source(tmp_path / "source", "deformable_detr", with_box_refine=True).model.state_dict()
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        variant=None,
        init_from=str(tmp_path / "source"),
        model_overrides={"num_queries": 20, "denoising_pairs": 3},
        data=str(digits),
        learning_rate=0.0,
        backbone_learning_rate=0.0,
        evaluation_epochs=1,
    )
    output = tmp_path / "run"
    assert run_here(recipe, "--output_dir", output, "--max_steps", "1") == 0
    assert run_here(recipe, "--output_dir", output, "--max_steps", "2", "--resume", "auto") == 0
    model = AutoModelForObjectDetection.from_pretrained(output)
    assert model.config.model_type == "sap_dino_detr"
    assert model.config.num_queries == 20
    ours = model.model.state_dict()
    name = "decoder.layers.2.{}.sampling_offsets.weight"
    assert torch.equal(ours[name.format("cross_attn")], theirs[name.format("encoder_attn")])
    assert '"AP"' in (output / "metrics.jsonl").read_text()


def test_warm_started_directory_is_fine_tuned_and_published_with_its_base(digits, source, tmp_path, capsys):
    _, folder = source
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: someone/dab\n---\n")
    start = warm_start_model(str(folder), tmp_path / "start", query_grid=[4, 4])
    tuning = {"variant": None, "model_overrides": {}, "model": str(tmp_path / "start"), "data": str(digits)}
    recipe = write_recipe(tmp_path / "recipe.yaml", **tuning, ignore_mismatched_sizes=True, max_steps=1)
    assert run_here(recipe, "--output_dir", tmp_path / "run") == 0
    settings = TrainingSettings(model=str(tmp_path / "start"), data="none")
    assert metadata(CardSources(start.model.config, settings=settings)).base_model == "someone/dab"
    capsys.readouterr()
    assert main(["publish", str(tmp_path / "run"), "someone/digits", "--license", "apache-2.0", "--dry-run"]) == 0
    listed = capsys.readouterr().out
    assert "base_model: someone/dab" in listed
    assert "model.safetensors" in listed


def test_card_of_a_run_started_from_the_hub(source):
    settings = TrainingSettings(init_from="someone/dab", data="none")
    sources = CardSources(warm_start(str(source[1])).model.config, settings=settings)
    assert metadata(sources).base_model == "someone/dab"
    assert "Trained from those weights of `someone/dab` that fit" in model_card(sources)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--init_from", "a/b", "--model", "c"], "not model and init_from"),
        (["--init_from", "a/b", "--backbone_weights", "c"], "also loads the backbone"),
        (["--init_from", "no-such/source"], "no-such/source is not a local model directory"),
    ],
)
def test_mistakes_are_named(digits, capsys, words, message):
    assert main(["train", "--data", str(digits), "--output_dir", "none", *words]) == 2
    assert message in capsys.readouterr().err
