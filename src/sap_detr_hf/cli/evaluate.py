"""Evaluate a model and print the numbers."""

import logging
import os

from sap_detr_cli.settings.evaluate import EvaluationSettings

from ..distributed import end_processes
from ..evaluation.mistakes import MATCH_IOU
from ..evaluation.report import class_table, evaluate_model, metrics_table


def run(settings: EvaluationSettings) -> int:
    """Evaluate on all processes; the first prints tables, the best threshold and the speed."""
    is_main = os.environ.get("RANK", "0") == "0"
    logging.getLogger("transformers").setLevel(logging.ERROR if is_main else logging.CRITICAL)
    results = evaluate_model(settings, command=settings.command)
    if is_main:
        print(f"AP and AR in per cent:\n\n{class_table(results['per_class'])}\n\n{metrics_table(results['metrics'])}\n")
        best = results["best_threshold"]
        if best:
            shown = ", ".join(f"{name} {value:.2f}" for name, value in best.items())
            print(f"highest F1 at IoU {MATCH_IOU:.2f}, all classes together: {shown}")
            errors = ", ".join(f"{kind} {count}" for kind, count in results["errors"].items())
            print(f"errors from this score on: {errors}")
        print(f"{results['images']} images, {results['images_per_second']:.2f} a second on {results['hardware']}")
        print(f"report: {settings.output}")
    end_processes()
    return 0
