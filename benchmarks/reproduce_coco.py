# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Reproduce a published AP on COCO val2017: convert or train, evaluate, compare, write the card, publish.

  python -m benchmarks.reproduce_coco checkpoint.pth COCO --output DIR              the authors' checkpoint
  python -m benchmarks.reproduce_coco coco_r50_50e COCO --output DIR                a recipe, trained here
  ... --publish OWNER/NAME [--dry-run]                                              the model with the measured AP

COCO is a folder with `annotations/instances_{train,val}2017.json` and `{train,val}2017/`. The exit code is 0 where AP
lies within the tolerance of what the authors report, 1 where it does not. A training that was stopped goes on. Several
GPUs: start it with `accelerate launch -m benchmarks.reproduce_coco`.
"""

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from sap_detr_cli.main import fail
from sap_detr_cli.recipes import read_recipe
from sap_detr_cli.settings.convert_checkpoint import ConversionSettings
from sap_detr_cli.settings.evaluate import EvaluationSettings
from sap_detr_cli.settings.publish import PublishSettings
from sap_detr_cli.settings.train import TrainingSettings
from sap_detr_hf.cli.convert_checkpoint import run as convert
from sap_detr_hf.cli.publish import run as publish
from sap_detr_hf.evaluation.report import evaluate_model, write_results
from sap_detr_hf.hub.model_card import COCO_ID, REPORTED_BY_AUTHORS
from sap_detr_hf.hub.publish import sources_of_directory
from sap_detr_hf.markdown_table import markdown_table
from sap_detr_hf.training.loop import train


def model_directory(source: str, coco: str, output: Path) -> Path | None:
    """Convert a checkpoint, or train a recipe; `None` where a signal stopped the training."""
    model = output / "model"
    if Path(source).suffix in (".pth", ".pt"):
        if PartialState().is_main_process and not (model / "config.json").exists():
            convert(ConversionSettings(source, str(model), verify=True))
        PartialState().wait_for_everyone()
        return model
    settings = {**read_recipe(source), "data": coco, "output_dir": str(model), "resume": "auto"}
    return None if train(TrainingSettings(**settings))["status"] == "interrupted" else model


def compare_with_authors(model: Path, metrics: dict[str, float], tolerance: float) -> dict[str, Any]:
    """The measured numbers beside those that the authors report, in per cent.

    Raises:
        ValueError: the authors report nothing about this model.
    """
    sources = replace(sources_of_directory(model), converted=True)  # a training of the same model is compared as well
    reported = sources.reported
    if reported is None:
        known = ", ".join(REPORTED_BY_AUTHORS)
        raise ValueError(f"{model} is none of the models whose AP the authors report ({known}).")
    measured = {name: 100 * metrics[name] for name in reported}
    reproduced = abs(measured["AP"] - reported["AP"]) <= tolerance
    return {"variant": sources.variant, "reported": reported, "measured": measured, "reproduced": reproduced}


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = argument_parser().parse_args(argv)
    command = shlex.join(["python", "-m", "benchmarks.reproduce_coco", *(sys.argv[1:] if argv is None else argv)])
    evaluation = args.output / "evaluation"
    try:
        model = model_directory(args.source, args.coco, args.output)
        if model is None:
            print("The training was stopped; the same command goes on from here.", file=sys.stderr)
            return 1
        settings = EvaluationSettings(
            model=str(model),
            data=args.coco,
            output=str(evaluation),
            overwrite=True,
            batch_size=args.batch_size,
            device=args.device,
        )
        results = evaluate_model(settings, command=command)
        if not PartialState().is_main_process:
            return 0
        outcome = compare_with_authors(model, results["metrics"], args.tolerance)
    except (OSError, ValueError) as error:
        return fail(error, 2)
    write_results(args.output / "reproduction.json", {**outcome, "source": args.source, "command": command})
    print(outcome_table(outcome))
    if args.publish:
        upload = PublishSettings(
            model_dir=str(model),
            repo_id=args.publish,
            evaluation=str(evaluation / "results.json"),
            dataset=COCO_ID,
            license="apache-2.0",
            dry_run=args.dry_run,
        )
        if code := publish(upload):
            return code
    return 0 if outcome["reproduced"] else 1


def outcome_table(outcome: dict[str, Any]) -> str:
    """Reported and measured numbers, and the verdict on AP."""
    names = list(outcome["reported"])
    rows = [[who, *(f"{outcome[who][name]:.1f}" for name in names)] for who in ("reported", "measured")]
    verdict = "reproduced" if outcome["reproduced"] else "NOT reproduced"
    return f"{outcome['variant']}: AP {verdict}\n\n{markdown_table(['in per cent', *names], rows)}"


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a checkpoint of the authors (.pth), or a recipe's name or file")
    parser.add_argument("coco", help="COCO 2017 folder")
    parser.add_argument("--output", type=Path, required=True, help="receives model, evaluation and reproduction.json")
    parser.add_argument("--batch-size", type=int, default=1, help="images of a batch in evaluation, all of one size")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="of the evaluation")
    parser.add_argument("--tolerance", type=float, default=0.1, help="of AP in per cent")
    parser.add_argument("--publish", metavar="OWNER/NAME", help="repository on the Hub")
    parser.add_argument("--dry-run", action="store_true", help="with --publish: show what would be sent")
    return parser


if __name__ == "__main__":
    sys.exit(main())
