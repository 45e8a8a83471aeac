"""Model cards: those in `model_cards/` are what the sources give, load strictly, and their code runs."""

import json
import re
from functools import partial
from pathlib import Path

import jinja2
import pytest
from huggingface_hub import ModelCard
from PIL import Image
from tiny_model import tiny_config, tiny_model

from benchmarks import write_cards
from benchmarks.write_cards import all_cards, speed_of, without_machine_paths
from sap_detr_cli.recipes import read_recipe
from sap_detr_cli.settings.train import TrainingSettings
from sap_detr_hf import SapDetrConfig, SapDetrImageProcessorPil
from sap_detr_hf.hub.model_card import (
    RECIPE,
    REPO_ID,
    REPORTED_BY_AUTHORS,
    SECTIONS,
    CardSources,
    card_of_converted,
    check_card,
    model_card,
    published_settings,
    read_results,
    variant_of,
)
from sap_detr_hf.hub.remote_code import add_remote_code
from sap_detr_hf.model.configuration_sap_detr import FURTHER_VARIANTS, PUBLISHED_VARIANTS
from sap_detr_hf.weights.variants import config_of_variant

ROOT = Path(__file__).parents[2]
CARDS = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "model_cards").glob("*.md")}
UNTRAINED = [*FURTHER_VARIANTS, "dino-r50"]
NAMES = [*(f"{variant}.md" for variant in (*PUBLISHED_VARIANTS, *UNTRAINED)), "demo.md"]

METRICS = {"AP": 0.27129, "AP50": 0.5820617, "AP_small": None, "AP_large": 0.4, "AR100": 0.3}
EVALUATION = {
    "metrics": METRICS,
    "per_class": [{"name": "LABEL_1"}],
    "images": 150,
    "seconds": 4.2,
    "images_per_second": 35.71,
    "batch_size": 2,
    "hardware": "a processor",
    "command": "make demo",
    "settings": {"data": "/data/digits", "split": "val", "max_images": None},
}


def _sources(**changes) -> CardSources:
    settings = TrainingSettings(variant="r50", data="/data/digits")
    return CardSources(
        **{"config": tiny_config(), "settings": settings, "evaluation": EVALUATION, "license": "apache-2.0", **changes}
    )


def test_cards_are_what_the_sources_give(tmp_path):
    assert write_cards.main(["--output", str(tmp_path)]) == 0
    written = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    assert sorted(written) == sorted(NAMES)
    assert written == CARDS


@pytest.mark.parametrize("name", NAMES)
def test_cards_load_strictly_and_are_complete(name):
    card = ModelCard.load(ROOT / "model_cards" / name, ignore_metadata_errors=False)
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "object-detection"
    assert card.data.license == "apache-2.0"
    assert "sap-detr" in card.data.tags
    assert re.findall(r"^## (.*)$", card.text, re.MULTILINE) == list(SECTIONS)
    check_card(str(card).replace(REPO_ID, "someone/model"))
    assert not re.search(r"(?<![\w.:/-])/(tmp|home|root|work|usr|data)/", str(card))


@pytest.mark.parametrize("variant", UNTRAINED)
def test_cards_of_what_nobody_has_trained_claim_nothing(variant):
    card = ModelCard.load(ROOT / "model_cards" / f"{variant}.md", ignore_metadata_errors=False)
    assert (card.data.eval_results, card.data.datasets, card.data.base_model) == (None, None, None)
    assert "## Results\n\nNo AP has been measured.\n" in card.text
    assert "Nobody has trained this variant yet." in card.text
    assert f"| variant | {variant} |" in card.text
    config = config_of_variant(variant)
    assert (f"{config.denoising_pairs} pairs an image" in card.text) == bool(config.denoising_pairs)
    groups = getattr(config, "num_groups", 1)
    assert (f" {groups} groups of the others" in card.text) == (groups > 1)
    assert ("points start at the center of their cells" in card.text) == (variant != "dino-r50")


@pytest.mark.parametrize("variant", PUBLISHED_VARIANTS)
def test_published_figures_are_marked_as_reported(variant):
    card = ModelCard.load(ROOT / "model_cards" / f"{variant}.md", ignore_metadata_errors=False)
    assert card.data.eval_results is None
    assert card.data.datasets == ["detection-datasets/coco"]
    results = re.search(r"## Results\n(.*?)\n## ", card.text, re.DOTALL)[1]
    assert "**reported by the authors, not measured here**" in results
    assert " | ".join(str(value) for value in REPORTED_BY_AUTHORS[variant].values()) in results
    recipe = read_recipe(f"coco_{variant.replace('-', '_')}_50e")
    given, stated = TrainingSettings(**recipe), published_settings(variant)
    assert {name: getattr(given, name) for name in RECIPE} == {name: getattr(stated, name) for name in RECIPE}


def test_demo_figures_are_those_of_the_evaluation():
    results = json.loads((ROOT / "docs" / "demo" / "results.json").read_text())
    card = ModelCard.load(ROOT / "model_cards" / "demo.md", ignore_metadata_errors=False)
    measured = {name: round(value, 4) for name, value in results["metrics"].items() if name[:2] == "AP" and value}
    assert {result.metric_name: result.metric_value for result in card.data.eval_results} == measured
    assert len(measured) >= 5
    for value in results["metrics"].values():
        assert (f"{100 * value:.1f}" if value is not None else " - ") in card.text


def test_committed_sources_hold_no_path_of_a_machine():
    for path in (ROOT / "docs" / "demo").iterdir():
        assert not re.search(r"""["' ]/\w+/""", path.read_text()), path


def test_code_in_the_cards_runs(tmp_path, monkeypatch, capsys):
    """With the package; `test_publish.py` runs it without."""
    model = tiny_model()
    for head in model.class_heads:
        head.layers[-1].bias.data += 5  # confident
    model.save_pretrained(tmp_path / "model")
    SapDetrImageProcessorPil(size={"shortest_edge": 96, "longest_edge": 160}).save_pretrained(tmp_path / "model")
    add_remote_code(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((150, 100), 80).convert("RGB").save("photo.jpg")
    for name in NAMES:
        blocks = re.findall(r"```python\n(.*?)```", CARDS[name], re.DOTALL)
        assert len(blocks) == 2
    for block in blocks:
        exec(block.replace(REPO_ID, "model"), {})
        assert "LABEL_" in capsys.readouterr().out


def test_needed_packages_are_the_dependencies():
    needed = re.search(r"it needs (.*?)\. With", CARDS["r50.md"], re.DOTALL)[1]
    packages = set(re.findall(r"`([\w>=.]+)`", needed))
    project = (ROOT / "pyproject.toml").read_text()
    assert {"torch", "scipy", "pillow"} < packages
    for package in packages:
        assert re.search(rf'^    "{package}[,>"]', project, re.MULTILINE), package


@pytest.mark.parametrize(
    "changes",
    [{}, {"evaluation": None}, {"settings": None, "image_size": {"height": 64, "width": 64}}, {"converted": True}],
)
def test_the_template_names_only_facts_that_exist(monkeypatch, changes):
    """Jinja writes nothing for an unknown name, without a word."""
    lenient = model_card(_sources(**changes))
    monkeypatch.setattr(jinja2, "Template", partial(jinja2.Template, undefined=jinja2.StrictUndefined))
    assert model_card(_sources(**changes)) == lenient


def test_card_of_a_training():
    text = model_card(_sources(repo_id="someone/finder"))
    data = ModelCard(text, ignore_metadata_errors=False).data
    assert data.model_name == "finder"
    assert {result.metric_name: result.metric_value for result in data.eval_results} == {
        "AP": 0.2713, "AP50": 0.5821, "AP_large": 0.4
    }  # fmt: skip
    assert data.eval_results[0].dataset_name == "digits"
    assert data.eval_results[0].dataset_split == "val"
    assert data.eval_results[0].verified is None
    assert data.base_model is None
    assert data.datasets is None
    assert "| 27.1 | 58.2 | - | 40.0 | 30.0 |" in text
    assert "the 150 images of the split `val` of digits by `make demo`" in text
    assert "35.7 a second" in text
    assert "single feature map.\n" in text
    sizes = {**METRICS, "AP_small": 0.1234, "AP_large": None, "AP_medium": 0.5}
    assert "AP 12.3 of small, 50.0 of medium objects." in model_card(
        _sources(evaluation={**EVALUATION, "metrics": sizes})
    )
    assert "/data" not in text
    assert REPO_ID not in text
    check_card(text)


def test_card_of_a_fine_tuned_model():
    settings = TrainingSettings(model="someone/sap-detr-r50", data="someone/cells", drop_factor=0.5)
    text = model_card(_sources(settings=settings, evaluation=None))
    data = ModelCard(text, ignore_metadata_errors=False).data
    assert data.base_model == "someone/sap-detr-r50"
    assert data.datasets == ["someone/cells"]
    assert data.eval_results is None
    assert "Fine-tuned from `someone/sap-detr-r50`" in text
    assert "| drop_factor | 0.5 |" in text
    assert "No AP has been measured." in text
    local = TrainingSettings(model="/runs/first", data="/data/mine")
    text = model_card(_sources(settings=local, evaluation=None, dataset_id="someone/mine", data_description="cells"))
    data = ModelCard(text, ignore_metadata_errors=False).data
    assert data.base_model is None
    assert data.datasets == ["someone/mine"]
    assert "Fine-tuned from `first`" in text
    assert "someone/mine (cells)" in text


def test_limits_follow_the_configuration():
    padded, own = model_card(_sources()), model_card(_sources(config=tiny_config(valid_region=True)))
    assert "depends on its neighbors, as in training" in padded
    assert "depends on its neighbors, as in training" not in own
    assert "91 class slots" in card_of_converted(SapDetrConfig.from_variant("r50"))
    assert "80 of them are" in card_of_converted(SapDetrConfig.from_variant("r50"))
    mapped = model_card(_sources(config=tiny_config(category_ids=[1, 2, 3, 4, 5, 7])))
    assert "`config.category_ids`" in mapped
    assert "91 class slots" not in mapped


def test_reported_figures_need_the_published_architecture_and_classes():
    assert variant_of(SapDetrConfig.from_variant("r101-dc5")) == "r101-dc5"
    assert variant_of(tiny_config()) is None
    assert "reported by the authors" in card_of_converted(SapDetrConfig.from_variant("r50"))
    other = card_of_converted(SapDetrConfig.from_variant("r50", num_labels=7))
    assert "reported by the authors" not in other
    assert "does not say what it was trained on" in other
    check_card(other.replace(REPO_ID, "someone/model"))
    assert "reported by the authors" not in card_of_converted(SapDetrConfig.from_variant("r50", decoder_layers=3))


def test_a_trial_is_called_a_trial():
    trial = {**EVALUATION, "settings": {**EVALUATION["settings"], "max_images": 5}}
    card = model_card(_sources(evaluation=trial))
    assert "measured on the first 5 images only" in card
    assert ModelCard(card).data.eval_results is None  # a reader of the metadata would take it for the whole split's


def test_results_of_another_model_are_refused(tmp_path):
    with pytest.raises(ValueError, match="of another model: its class 'zebra'"):
        _sources(evaluation={**EVALUATION, "per_class": [{"name": "zebra"}]})
    path = tmp_path / "results.json"
    for content, message in (("{", "not valid JSON"), ("{}", "not the results.json"), ("[]", "not the results.json")):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_results(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("library_name: transformers\n", ""), "`library_name: transformers`"),
        (lambda text: text.replace("license: apache-2.0\n", ""), "`license`"),
        (lambda text: text.replace("## Limits\n", ""), "the section `## Limits`"),
        (lambda text: text.replace("someone/finder", REPO_ID), "the repository's name"),
        (lambda text: text.replace("- name: finder", "- nom: finder"), "metadata cannot be read"),
        (lambda text: text.split("---\n")[2], "`library_name: transformers`"),
    ],
)
def test_incomplete_cards_say_what_they_lack(change, message):
    text = change(model_card(_sources(repo_id="someone/finder")))
    with pytest.raises(ValueError, match=message):
        check_card(text)
    with pytest.raises(ValueError, match="what the model was trained on"):
        check_card(model_card(_sources(repo_id="someone/finder", settings=None)))


SPEED = """Measured on a card.

| model | seconds |
|---|---|
| `r50` | 1.2 |
| r50-dc5 | 2.6 |
"""


def test_speed_rows_of_a_model(tmp_path):
    assert speed_of("r50", SPEED) == "Measured on a card.\n\n| model | seconds |\n|---|---|\n| `r50` | 1.2 |"
    assert speed_of("r101", SPEED) is None
    cards = all_cards(tmp_path / "absent", SPEED)
    assert "| r50-dc5 | 2.6 |" in cards["r50-dc5.md"]
    assert "## Speed\n\nNot measured." in cards["r101.md"]
    assert "demo.md" not in cards


def test_demo_sources_are_taken_without_machine_paths(tmp_path, capsys):
    demo = tmp_path / "demo output"
    for folder in ("model", "evaluation"):
        (demo / folder).mkdir(parents=True)
    tiny_config().save_pretrained(demo / "model")
    settings = TrainingSettings(variant="r50", data=str(demo / "digits"), backbone_weights="/opt/site/net.pth")
    (demo / "model" / "settings.yaml").write_text(settings.to_yaml())
    results = {**EVALUATION, "image_size": {"shortest_edge": 64, "longest_edge": 64}, "annotation_file": "/a/b.json"}
    (demo / "evaluation" / "results.json").write_text(json.dumps(results))
    arguments = ["--demo", str(demo), "--sources", str(tmp_path / "sources"), "--output", str(tmp_path / "cards")]
    assert write_cards.main(arguments) == 0
    kept = "".join(path.read_text() for path in (tmp_path / "sources").iterdir())
    assert str(tmp_path) not in kept
    assert "/opt" not in kept
    assert "/a/" not in kept
    assert "net.pth" in kept
    card = (tmp_path / "cards" / "demo.md").read_text()
    assert "on the split `train` of digits (real handwritten digits" in card
    (demo / "evaluation" / "results.json").unlink()
    assert write_cards.main(arguments) == 2
    assert "results.json" in capsys.readouterr().err


def test_paths_within_commands():
    root = Path("/runs/demo")
    content = {"command": "sap-detr evaluate /runs/demo/model '/data/coco' --output a/b", "n": [1, "/x/y"]}
    expected = {"command": "sap-detr evaluate model 'coco' --output a/b", "n": [1, "y"]}
    assert without_machine_paths(content, root) == expected
    untouched = {"url": "https://huggingface.co/a/b", "relative": "runs/mine", "text": "25 images/s"}
    assert without_machine_paths(untouched, root) == untouched
