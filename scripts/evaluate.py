"""COCO AP of a saved model: `python scripts/evaluate.py MODEL DATA`.

Several GPUs: `accelerate launch --num_processes 4 scripts/evaluate.py MODEL DATA`. Several processes on a CPU:
`torchrun --nproc_per_node 2 scripts/evaluate.py MODEL DATA --device cpu` (`accelerate launch --cpu` would need MPI).
"""

import argparse
import dataclasses
import logging
import os
import shlex
import sys

from sap_detr_hf.distributed import end_processes
from sap_detr_hf.evaluation.mistakes import MATCH_IOU
from sap_detr_hf.evaluation.report import EvaluationSettings, class_table, evaluate_model, metrics_table


def main(argv: list[str] | None = None) -> int:
    """Evaluates, prints and writes the numbers; 0 when done, 2 for a model, data or settings that cannot be used."""
    argv = sys.argv[1:] if argv is None else argv
    is_main = os.environ.get("RANK", "0") == "0"
    logging.getLogger("transformers").setLevel(logging.ERROR if is_main else logging.CRITICAL)
    try:
        settings = EvaluationSettings(**vars(_parser().parse_args(argv)))
        results = evaluate_model(settings, command=shlex.join(["scripts/evaluate.py", *argv]))
    except (ValueError, OSError) as error:
        if is_main:
            print(f"error: {error}", file=sys.stderr)
        return 2
    if is_main:
        print(f"{class_table(results['per_class'])}\n\n{metrics_table(results['metrics'])}\n")
        best = results["best_threshold"]
        if best:
            shown = ", ".join(f"{name} {value:.2f}" for name, value in best.items())
            print(f"highest F1 at IoU {MATCH_IOU:.2f}, all classes together: {shown}")
        print(f"{results['images']} images, {results['images_per_second']:.2f} a second on {results['hardware']}")
        print(f"report: {settings.output}")
    end_processes()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    for field in dataclasses.fields(EvaluationSettings):
        reason = field.type.__metadata__[0]
        if field.default is dataclasses.MISSING:
            parser.add_argument(field.name, help=reason)
        elif isinstance(field.default, bool):
            parser.add_argument(*_options(field.name), action="store_true", help=reason)
        else:
            parser.add_argument(*_options(field.name), type=_type(field), default=field.default, help=reason)
    return parser


def _options(name: str) -> list[str]:
    """As the other scripts write it, and as scripts/train.py does."""
    return list(dict.fromkeys([f"--{name.replace('_', '-')}", f"--{name}"]))


def _type(field: dataclasses.Field) -> type:
    return int if "int" in str(field.type.__origin__) else str


if __name__ == "__main__":
    sys.exit(main())
