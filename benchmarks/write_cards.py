"""Write all of `model_cards/` anew from configurations, recipes and measurements; no number in them is typed.

The cards are those of the four published variants, of the further ones, which nobody has trained on COCO yet, and of
the demo's model with what was measured of it.
"""

import argparse
import json
import sys
from pathlib import Path, PurePath
from typing import Any

import yaml
from transformers import AutoConfig

from sap_detr_cli.main import fail
from sap_detr_cli.recipes import read_recipe
from sap_detr_cli.settings.train import TrainingSettings
from sap_detr_hf.demo import digits
from sap_detr_hf.hub.model_card import ABSOLUTE_PATH, CardSources, card_of_converted, model_card, read_results
from sap_detr_hf.model.configuration_sap_detr import PUBLISHED_VARIANTS, SapDetrConfig
from sap_detr_hf.weights.variants import config_of_variant

ROOT = Path(__file__).parents[1]
SPEED = ROOT / "benchmarks" / "results" / "forward_cpu.md"
UNTRAINED = {
    "r50-group": "coco_r50_group_50e",
    "r50-dc5-group": "coco_r50_dc5_group_50e",
    "r50-dn": "coco_r50_dn_50e",
    "r50-plus": "coco_r50_plus_50e",
    "dino-r50": "coco_dino_r50_36e",
}
"""Variants of this project and the recipe of each card."""
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
    cards |= {f"{variant}.md": untrained_card(recipe, speed) for variant, recipe in UNTRAINED.items()}
    if demo_sources.is_dir():
        cards["demo.md"] = demo_card(demo_sources)
    return cards


def untrained_card(recipe: str, speed: str) -> str:
    """The card of a variant that nobody has trained, with the recipe that would."""
    settings = TrainingSettings(**read_recipe(recipe))
    assert settings.variant is not None
    config: Any = config_of_variant(settings.variant)
    size = {"shortest_edge": 800, "longest_edge": 1333}
    speed_rows = speed_of(settings.variant, speed)
    return model_card(
        CardSources(
            config, settings=settings, untrained=recipe, image_size=size, license="apache-2.0", speed=speed_rows
        )
    )


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
    """Copy the files of [`DEMO_SOURCES`] from the output of `sap-detr demo`, without the paths of its machine.

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


def main(argv: list[str] | None = None) -> int:
    """Writes the cards; 0 when done, 2 for a source that is missing or unreadable."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "model_cards", help="folder of the cards")
    parser.add_argument("--sources", type=Path, default=ROOT / "docs" / "demo", help="sources of the demo's card")
    parser.add_argument("--demo", type=Path, help="output of `sap-detr demo`, from which the sources are taken first")
    parser.add_argument("--speed", type=Path, default=SPEED, help="table of speeds")
    args = parser.parse_args(argv)
    try:
        if args.demo is not None:
            take_demo_sources(args.demo, args.sources)
        speed = args.speed.read_text(encoding="utf-8") if args.speed.is_file() else ""
        cards = all_cards(args.sources, speed)
        args.output.mkdir(parents=True, exist_ok=True)
        for name, text in cards.items():
            (args.output / name).write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        return fail(error, 2)
    print(f"{args.output}: {', '.join(cards)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
