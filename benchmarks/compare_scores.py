"""COCO AP of trained models scored by class alone, as released, and by the root of class times objectness.

The objectness head learns the IoU of a query's box with its object, so that it could rank boxes by how exact they are.
The models may be seeds of one training: each is a row of its own.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sap_detr_cli.main import fail
from sap_detr_hf.data.dataset import load_detection_data
from sap_detr_hf.environment import hardware_name, software_versions
from sap_detr_hf.evaluation.evaluate import evaluate_detections, ground_truth
from sap_detr_hf.evaluation.report import write_results
from sap_detr_hf.weights.pretrained import load_detector

SCORES = ("class", "class and objectness")
METRICS = ("AP", "AP50", "AP75")


def score_by_both(module: nn.Module, arguments: tuple, outputs: Any) -> None:
    """A forward hook: logits (B, N, K) whose sigmoid is the root of class times objectness."""
    objectness = outputs.pred_objectness.sigmoid()  # (B, N, 1)
    outputs.logits = (outputs.logits.sigmoid() * objectness).sqrt().logit()


def compare(models: list[str], data_name: str, split: str) -> list[dict[str, Any]]:
    """AP of each model with both scores.

    Raises:
        OSError, ValueError: a model or data set that cannot be used.
    """
    data = load_detection_data(data_name, split)
    rows = []
    for name in models:
        model, image_processor = load_detector(name, "cpu")
        found = {}
        for score in SCORES:
            evaluation = evaluate_detections(model, data.dataset, image_processor, ground_truth(data))
            found[score] = {metric: evaluation.metrics[metric] for metric in METRICS}
            model.register_forward_hook(score_by_both)
        rows.append({"model": "/".join(Path(name).parts[-2:]), **found})
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def main(argv: list[str] | None = None) -> int:
    """Run the command; 2 for a model or data set that cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("data", help="COCO directory")
    parser.add_argument("models", nargs="+", help="model directories or Hub ids")
    parser.add_argument("--split", default="val", help="split of the data")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the results")
    args = parser.parse_args(argv)
    try:
        rows = compare(args.models, args.data, args.split)
        setting = {"hardware": hardware_name(torch.device("cpu")), "versions": software_versions()}
        write_results(args.output, {"runs": rows, **setting})
    except (ImportError, OSError, ValueError) as error:
        return fail(error, 2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
