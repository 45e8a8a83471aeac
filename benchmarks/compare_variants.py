# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Train SAP-DETR as released, corrected, with denoising and with groups, at several rates and seeds, and compare AP.

Every run is a training of its own in a process of its own. A comparison that was stopped, or whose time was over, goes
on when the same command is run again; finished runs are not repeated.
"""

import argparse
import json
import multiprocessing
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.convergence import CURVES, remember_settings, summarize_metrics
from sap_detr_cli.recipes import read_recipe
from sap_detr_cli.settings.train import TrainingSettings
from sap_detr_hf.environment import hardware_name, software_versions
from sap_detr_hf.evaluation.report import write_results
from sap_detr_hf.markdown_table import markdown_table
from sap_detr_hf.model.configuration_sap_detr import CORRECTED
from sap_detr_hf.training.loop import train
from sap_detr_hf.training.run import load_data
from sap_detr_hf.weights.backbone import packaged_backbone

FORMS: dict[str, dict[str, Any]] = {
    "base": {},
    "corrections": CORRECTED,
    "denoising-0.4": {**CORRECTED, "denoising_pairs": 16, "denoising_box_noise": 0.4},
    "denoising-1.0": {**CORRECTED, "denoising_pairs": 16, "denoising_box_noise": 1.0},
    "groups": {**CORRECTED, "num_groups": 3},
    "denoising-groups": {**CORRECTED, "denoising_pairs": 16, "denoising_box_noise": 1.0, "num_groups": 3},
}
RESULT = "result.json"
STOP_SECONDS = 300  # for a training that was told to stop to save its state


@dataclass(frozen=True)
class Run:
    """One training: a form of the model, a learning rate, a seed."""

    form: str
    rate: float
    seed: int

    def folder(self, output_dir: Path) -> Path:
        """Where its training writes."""
        return output_dir / self.form / f"rate_{self.rate:g}" / f"seed_{self.seed}"


def compare_variants(
    shared: TrainingSettings, output_dir: Path, runs: Sequence[Run], seconds: float, command: str | None = None
) -> dict[str, Any]:
    """Train what is not trained yet, as long as there is time, and report all finished runs.

    Args:
        shared: the settings of all runs, whose `model_overrides` the forms add to.
        output_dir: receives the folder of each run, `settings.yaml`, `results.json` and `results.md`.
        runs: in this order.
        seconds: no training goes on for longer, counted from now.
        command: what the user typed, for the report.

    Returns:
        The contents of `results.json`.

    Raises:
        ValueError: settings or data that cannot work, before the first step.
        RuntimeError: a training failed.
    """
    deadline = time.monotonic() + seconds
    load_data(shared)
    remember_settings(shared, output_dir)
    for run in runs:
        if not (run.folder(output_dir) / RESULT).exists() and not train_until(
            settings_of_run(shared, output_dir, run), run, deadline
        ):
            break
    done = [run for run in runs if (run.folder(output_dir) / RESULT).exists()]
    results = {
        "status": "finished" if len(done) == len(runs) else "interrupted",
        "command": command,
        "settings": asdict(shared),
        "versions": software_versions(),
        "hardware": hardware_name(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "threads": torch.get_num_threads(),
        "runs": [json.loads((run.folder(output_dir) / RESULT).read_text(encoding="utf-8")) for run in done],
    }
    write_results(output_dir / "results.json", results)
    (output_dir / "results.md").write_text(report_text(results) + "\n", encoding="utf-8")
    return results


def settings_of_run(shared: TrainingSettings, output_dir: Path, run: Run) -> TrainingSettings:
    """The shared settings with the run's form, rate, seed and folder."""
    return replace(
        shared,
        model_overrides={**shared.model_overrides, **FORMS[run.form]},
        learning_rate=run.rate,
        seed=run.seed,
        output_dir=str(run.folder(output_dir)),
        resume="auto",
    )


def train_until(settings: TrainingSettings, run: Run, deadline: float) -> bool:
    """Train in a process of its own, whose peak memory is the run's; returns whether it ended before the deadline.

    Raises:
        RuntimeError: the training failed; its own message stands above.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        return False
    print(f"{run.form}, rate {run.rate:g}, seed {run.seed}", file=sys.stderr, flush=True)
    process = multiprocessing.get_context("spawn").Process(target=train_here, args=(settings, run))
    process.start()
    process.join(left)
    if process.is_alive():
        process.terminate()  # the training loop saves its state
        process.join(STOP_SECONDS)
    if (Path(settings.output_dir) / RESULT).exists():
        return True
    if process.exitcode not in (0, -15):
        raise RuntimeError(f"The training in {settings.output_dir} failed (exit code {process.exitcode}).")
    return False


def train_here(settings: TrainingSettings, run: Run) -> None:
    """Train, and write the run's result if it was not interrupted."""
    if train(settings)["status"] != "interrupted":
        folder = Path(settings.output_dir)
        write_results(folder / RESULT, {**asdict(run), **summarize_metrics(folder, settings.effective_batch)})


def report_text(results: dict[str, Any]) -> str:
    """The comparison as Markdown: AP at the end of training and after the time that the base took, by form and rate."""
    settings = results["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for run in results["runs"]:
        groups.setdefault((run["form"], run["rate"]), []).append(run)
    base = [run["seconds_per_epoch"] for run in results["runs"] if run["form"] == "base"]
    base_seconds = statistics.median(base) * settings["epochs"] if base else None
    rows = [
        [
            form,
            f"{rate:g}",
            str(len(runs)),
            *(mean_and_range([run["curve"][-1][key] for run in runs]) for key in CURVES),
            mean_and_range([ap_after(run, base_seconds) for run in runs]),
            f"{statistics.median(run['seconds_per_epoch'] for run in runs):.1f}",
            f"{max(run['memory_gib'] for run in runs):.2f}",
        ]
        for (form, rate), runs in groups.items()
    ]
    titles = ["form", "rate", "seeds", *CURVES, "AP at the base's seconds", "s an epoch", "peak GiB"]
    what = (
        f"AP in per cent on the `{settings['val_split']}` split of `{Path(settings['data'] or '').name}` after "
        f"{settings['epochs']} epochs, batch {settings['effective_batch']}: mean over the seeds (lowest to highest). "
        "At the base's seconds: the last measured AP within the base's training time, with a rate not yet lowered. "
        f"{results['hardware']}, {results['threads']} threads; {versions}."
    )
    return f"{what}\n\n{markdown_table(titles, rows)}"


def ap_after(run: dict[str, Any], seconds: float | None) -> float | None:
    """The last AP that was measured within so many seconds of training."""
    if seconds is None:
        return None
    reached = [point["AP"] for point in run["curve"] if point["epoch"] * run["seconds_per_epoch"] <= seconds * 1.02]
    return reached[-1] if reached else None


def mean_and_range(values: Sequence[float | None]) -> str:
    """Shares as per cent: `mean (lowest to highest)`."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return "-"
    return f"{statistics.mean(known):.1f} ({min(known):.1f} to {max(known):.1f})"


def main(argv: list[str] | None = None) -> int:
    """Run the command: 0 when all runs are finished, 1 if one failed or the time is over, 2 for wrong settings."""
    args = argument_parser().parse_args(argv)
    command = shlex.join(["python", "-m", "benchmarks.compare_variants", *(sys.argv[1:] if argv is None else argv)])
    runs = [Run(form, rate, seed) for seed in args.seeds for form in args.forms for rate in args.rates]
    try:
        recipe = {**read_recipe(args.recipe), "data": args.data, "output_dir": str(args.output)}
        recipe["backbone_weights"] = args.backbone_weights or packaged_backbone()
        shared = TrainingSettings(**recipe | ({"epochs": args.epochs} if args.epochs else {}))
        results = compare_variants(shared, args.output, runs, args.seconds, command)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report_text(results))
    if results["status"] == "interrupted":
        print(
            f"{len(results['runs'])} of {len(runs)} runs are done: the same command goes on from here.", file=sys.stderr
        )
        return 1
    return 0


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("data", help="COCO directory or another data set that `sap-detr train` takes")
    parser.add_argument("--output", type=Path, required=True, help="folder that gets everything")
    parser.add_argument("--seconds", type=float, default=3600, help="no training goes on for longer")
    parser.add_argument("--recipe", default="bccd", help="settings of all runs")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), help="what to train")
    parser.add_argument("--rates", nargs="+", type=float, default=[5e-4, 1e-3], help="learning rates of each form")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="all forms and rates of a seed in turn")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--backbone-weights", help="ImageNet weights; default: the packaged EfficientNet-Lite0")
    return parser


if __name__ == "__main__":
    sys.exit(main())
