"""Measure what a warm start brings: train a DAB-DETR on digits, and start from it on other data or from ImageNet alone.

The digits stand for COCO, which cannot be had everywhere. Every training is in a process of its own, and the backbone
is the same and stays as it is. What was stopped, or whose time was over, goes on when the same command is run again.
"""

import argparse
import json
import shlex
import statistics
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.compare_variants import RESULT, Run, mean_and_range, train_until
from benchmarks.convergence import CURVES, FAMILIES, build_start, remember_settings, settings_of_model
from sap_detr_cli.recipes import read_recipe
from sap_detr_cli.settings.train import TrainingSettings
from sap_detr_hf.demo.digits import make_digits
from sap_detr_hf.environment import hardware_name, software_versions
from sap_detr_hf.evaluation.report import write_results
from sap_detr_hf.markdown_table import markdown_table
from sap_detr_hf.training.checkpoints import save_model_directory
from sap_detr_hf.training.model import build_image_processor
from sap_detr_hf.training.run import load_data
from sap_detr_hf.weights.backbone import packaged_backbone

FORMS = ("imagenet", "warm-start")


def compare_warm_start(
    shared: TrainingSettings, source: TrainingSettings, seeds: list[int], seconds: float, images: int, command: str
) -> dict[str, Any]:
    """Train what is not trained yet, as long as there is time, and report all finished runs.

    Args:
        shared: the settings of the compared runs, with `variant` and `backbone_weights`; `output_dir` gets everything.
        source: the settings of the training on digits.
        seeds: of the compared runs.
        seconds: no training goes on for longer, counted from now.
        images: of digits to learn from.
        command: what the user typed, for the report.

    Returns:
        The contents of `results.json`.

    Raises:
        ValueError: settings or data that cannot work, before the first step.
        RuntimeError: a training failed.
    """
    deadline, folder = time.monotonic() + seconds, Path(shared.output_dir)
    load_data(shared)
    remember_settings(shared, folder)
    digits, start = folder / "digits", folder / "digits_start"
    if not (digits / "annotations" / "instances_val.json").exists():
        make_digits(digits, images, max(images // 16, 1))
    source = replace(source, data=str(digits))
    if not (start / "preprocessor_config.json").exists():  # its last file
        model = build_start(FAMILIES["dab-detr"], source, load_data(source)[0])
        save_model_directory(start, model, build_image_processor(source))
    digits_run = Run("digits", source.learning_rate, source.seed)
    done = train_missing(
        replace(settings_of_model(source, start, digits_run.folder(folder)), resume="auto"), digits_run, deadline
    )
    runs = [Run(form, shared.learning_rate, seed) for seed in seeds for form in FORMS]
    for run in runs if done else []:
        if not train_missing(settings_of_run(shared, run, digits_run.folder(folder)), run, deadline):
            break
    paths = [run.folder(folder) / RESULT for run in (digits_run, *runs)]
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
    results = {
        "status": "finished" if len(found) == len(paths) else "interrupted",
        "command": command,
        "settings": asdict(shared),
        "source_settings": asdict(source),
        "versions": software_versions(),
        "hardware": hardware_name(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "threads": torch.get_num_threads(),
        "runs": found,
    }
    write_results(folder / "results.json", results)
    (folder / "results.md").write_text(report_text(results) + "\n", encoding="utf-8")
    return results


def train_missing(settings: TrainingSettings, run: Run, deadline: float) -> bool:
    """Train unless it is done; returns whether it is."""
    return (Path(settings.output_dir) / RESULT).exists() or train_until(settings, run, deadline)


def settings_of_run(shared: TrainingSettings, run: Run, source: Path) -> TrainingSettings:
    """The shared settings; a warm start has the source's weights in place of variant and backbone weights."""
    warm: dict[str, Any] = {}
    if run.form == "warm-start":
        # Widths, depths and backbone are the source's, which has those of `shared`.
        grid = {"query_grid": shared.model_overrides["query_grid"], "frozen_backbone_stages": 0}
        warm = {"variant": None, "backbone_weights": None, "init_from": str(source), "model_overrides": grid}
    folder = str(run.folder(Path(shared.output_dir)))
    return replace(shared, **warm, seed=run.seed, output_dir=folder, resume="auto")


def report_text(results: dict[str, Any]) -> str:
    """AP by epoch as Markdown, for each start, and the AP of the source on its digits."""
    settings, versions = results["settings"], results["versions"]
    digits = [run for run in results["runs"] if run["form"] == "digits"]
    groups = {form: [run for run in results["runs"] if run["form"] == form] for form in FORMS}
    epochs = sorted({point["epoch"] for runs in groups.values() for run in runs for point in run["curve"]})
    rows = [
        [f"{epoch:g}", *(mean_and_range(_at(runs, epoch, key)) for runs in groups.values() for key in CURVES)]
        for epoch in epochs
    ]
    seconds = [statistics.median(run["seconds_per_epoch"] for run in runs) for runs in groups.values() if runs]
    return (
        f"AP in per cent on the `{settings['val_split']}` split of `{Path(settings['data'] or '').name}`: mean over "
        f"{[len(runs) for runs in groups.values()]} seeds (lowest to highest). The source, a DAB-DETR, reaches "
        f"{mean_and_range([run['curve'][-1]['AP'] for run in digits])} AP on its digits. Seconds an epoch: "
        f"{', '.join(f'{each:.1f}' for each in seconds)}. {results['hardware']}, {results['threads']} threads; "
        f"{', '.join(f'{name} {version}' for name, version in versions.items())}.\n\n"
        + markdown_table(["epochs", *(f"{form} {key}" for form in FORMS for key in CURVES)], rows)
    )


def _at(runs: list[dict[str, Any]], epoch: float, key: str) -> list[float | None]:
    return [point[key] for run in runs for point in run["curve"] if point["epoch"] == epoch]


def main(argv: list[str] | None = None) -> int:
    """Run the command: 0 when all runs are finished, 1 if one failed or the time is over, 2 for wrong settings."""
    args = argument_parser().parse_args(argv)
    command = shlex.join(["python", "-m", "benchmarks.compare_warm_start", *(sys.argv[1:] if argv is None else argv)])
    try:
        recipe = {**read_recipe(args.recipe), "data": args.data, "output_dir": str(args.output)}
        recipe["backbone_weights"] = args.backbone_weights or packaged_backbone()
        shared = TrainingSettings(**recipe | ({"epochs": args.epochs} if args.epochs else {}))
        on_digits = {"epochs": args.digits_epochs, "augmentation": "none"}  # a mirrored digit is another sign
        sides = (
            {} if args.digits_side is None else {"shortest_edge": args.digits_side, "longest_edge": args.digits_side}
        )
        source = TrainingSettings(**{**recipe, **on_digits, **sides})
        results = compare_warm_start(shared, source, args.seeds, args.seconds, args.digits, command)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report_text(results))
    return 0 if results["status"] == "finished" else 1


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("data", help="COCO directory or another data set that `sap-detr train` takes")
    parser.add_argument("--output", type=Path, required=True, help="folder that gets everything")
    parser.add_argument("--seconds", type=float, default=3600, help="no training goes on for longer")
    parser.add_argument("--recipe", default="bccd", help="settings of all runs")
    parser.add_argument("--epochs", type=int, help="of the compared runs, instead of the recipe's")
    parser.add_argument("--digits", type=int, default=1600, help="images of digits to train the source on")
    parser.add_argument("--digits-epochs", type=int, default=25, help="of the source")
    parser.add_argument("--digits-side", type=int, default=160, help="pixels; the digits' pictures are square")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the compared runs")
    parser.add_argument("--backbone-weights", help="ImageNet weights; default: the packaged EfficientNet-Lite0")
    return parser


if __name__ == "__main__":
    sys.exit(main())
