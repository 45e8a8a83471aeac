"""The cards in `model_cards/`: the four published variants, and the demo's model with what was measured of it."""

import json
from pathlib import Path, PurePath
from typing import Any

import yaml
from transformers import AutoConfig

from sap_detr_cli.recipes import read_recipe
from sap_detr_cli.settings.train import TrainingSettings
from sap_detr_hf.demo import digits
from sap_detr_hf.hub.model_card import ABSOLUTE_PATH, CardSources, card_of_converted, model_card, read_results
from sap_detr_hf.model.configuration_sap_detr import PUBLISHED_VARIANTS, SapDetrConfig

DEMO_SOURCES = {"config.json": "model", "settings.yaml": "model", "results.json": "evaluation"}
"""What the demo's card is written from, and the folder of the demo's output that it lies in."""


def all_cards(demo_sources: Path, speed: str = "") -> dict[str, str]:
    """Every card of `model_cards/` by its file name.

    Args:
        demo_sources: folder with the files of [`DEMO_SOURCES`]; without it there is no demo card.
        speed: Markdown with a table of measured speed whose first column names the models.

    Raises:
        OSError, ValueError: a source is missing or unreadable.
    """
    cards = {
        f"{variant}.md": card_of_converted(SapDetrConfig.from_variant(variant), speed_of(variant, speed))
        for variant in PUBLISHED_VARIANTS
    }
    if demo_sources.is_dir():
        cards["demo.md"] = demo_card(demo_sources)
    return cards


def demo_card(sources: Path) -> str:
    """The card of the demo's model, from the files of [`DEMO_SOURCES`]."""
    evaluation = read_results(sources / "results.json")
    return model_card(
        CardSources(
            AutoConfig.from_pretrained(sources),
            evaluation=evaluation,
            settings=TrainingSettings(**read_recipe(sources / "settings.yaml")),
            image_size=evaluation["image_size"],
            license="apache-2.0",
            data_description=(digits.__doc__ or "").splitlines()[0].removeprefix("The demo data set: ").rstrip("."),
        )
    )


def take_demo_sources(demo_output: Path, target: Path) -> None:
    """Copy what the demo's card is written from, without the paths of the machine that ran it.

    Args:
        demo_output: what `sap-detr demo` left.
        target: folder that receives the files of [`DEMO_SOURCES`].

    Raises:
        OSError: one of them is missing.
    """
    texts = {name: (demo_output / folder / name).read_text(encoding="utf-8") for name, folder in DEMO_SOURCES.items()}
    target.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        is_yaml = name.endswith(".yaml")
        content = without_machine_paths(yaml.safe_load(text) if is_yaml else json.loads(text), demo_output.resolve())
        text = yaml.safe_dump(content, sort_keys=False) if is_yaml else json.dumps(content, indent=2) + "\n"
        (target / name).write_text(text, encoding="utf-8")


def without_machine_paths(content: Any, root: Path) -> Any:
    """JSON or YAML content whose absolute paths are relative to `root`, or are reduced to their file's name."""
    if isinstance(content, dict):
        return {key: without_machine_paths(value, root) for key, value in content.items()}
    if isinstance(content, list):
        return [without_machine_paths(value, root) for value in content]
    if not isinstance(content, str):
        return content
    if PurePath(content).is_relative_to(root):  # as a whole: it may hold spaces
        return _relative(content, root)
    return ABSOLUTE_PATH.sub(lambda found: _relative(found[0], root), content)


def _relative(path: str, root: Path) -> str:
    pure = PurePath(path)
    return pure.relative_to(root).as_posix() if pure.is_relative_to(root) else pure.name


def speed_of(model: str, markdown: str) -> str | None:
    """The rows of one model (`r50`, `r50:optimized`) in Markdown with a table, with the text around; None without."""
    lines = markdown.strip().splitlines()
    first_row = next((index for index, line in enumerate(lines) if line.startswith("|")), len(lines))
    header = lines[first_row : first_row + 2]
    rows = [line for line in lines[first_row + 2 :] if _first_cell(line).partition(":")[0] == model]
    if not rows:
        return None
    text = "\n".join(line for line in lines if not line.startswith("|")).strip()
    return "\n".join([f"{text}\n", *header, *rows]).strip()


def _first_cell(line: str) -> str:
    return line.split("|")[1].strip(" `*") if line.startswith("|") else ""
