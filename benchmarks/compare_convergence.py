# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Train SAP-DETR, DAB-DETR and Conditional DETR alike and draw AP over epochs.

A comparison that was stopped or killed goes on when the same command is run again.
"""

import argparse
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODELS = ("sap-detr", "dab-detr", "conditional-detr")


def main(argv: list[str] | None = None) -> int:
    """Run the command: 0 when all are trained, 1 for a failed or stopped training, 2 for wrong settings or data."""
    args = argument_parser().parse_args(argv)
    # After the arguments, so that --help answers at once
    from benchmarks.convergence import compare_convergence, report_text
    from sap_detr_cli.recipes import read_recipe
    from sap_detr_cli.settings.train import TrainingSettings
    from sap_detr_hf.training.failure import TrainingFailed

    given = {"epochs": args.epochs, "seed": args.seed, "backbone_weights": args.backbone_weights}
    command = shlex.join(["python", "-m", "benchmarks.compare_convergence", *(sys.argv[1:] if argv is None else argv)])
    try:
        recipe = {**read_recipe(args.recipe), "data": args.data, "output_dir": str(args.output)}
        shared = TrainingSettings(**recipe | {name: value for name, value in given.items() if value is not None})
        results = compare_convergence(shared, args.output, args.models, command)
    except TrainingFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report_text(results))
    if results["status"] == "interrupted":
        print("Stopped by a signal: the same command goes on from here.", file=sys.stderr)
        return 1
    print(f"\nLook at {args.output}/curves.png; numbers and settings are in {args.output}/results.json.")
    return 0


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("data", help="COCO directory or another data set that `sap-detr train` takes")
    parser.add_argument("--output", type=Path, required=True, help="folder that gets everything")
    parser.add_argument("--recipe", default="bccd", help="settings of all models: name of a recipe, or a file")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="what to train, in this order")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--seed", type=int, help="instead of the recipe's")
    parser.add_argument("--backbone-weights", help="ImageNet weights; default: the packaged EfficientNet-Lite0")
    return parser


if __name__ == "__main__":
    sys.exit(main())
