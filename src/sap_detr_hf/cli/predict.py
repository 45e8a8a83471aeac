"""Predict all inputs and print where the results are."""

import sys

from sap_detr_cli.settings.predict import PredictionSettings

from ..inference.predict import predict
from . import silence_transformers


def run(settings: PredictionSettings) -> int:
    """Predict; 1 where an input failed or Ctrl+C stopped it."""
    silence_transformers()
    try:
        summary = predict(settings)
    except KeyboardInterrupt:
        print(f"Stopped: the predictions so far are in {settings.output}.", file=sys.stderr)
        return 1
    print(f"{summary.images} images, {summary.detections} detections: {settings.output}")
    if summary.images and not summary.detections:
        print(
            f"No detection scores above --threshold {settings.threshold:g}. Scores of a model that was trained for a "
            "short time can be low: lower it, for instance to the threshold of the best F1 that `sap-detr evaluate` "
            "prints.",
            file=sys.stderr,
        )
    if summary.failed:
        print(f"{summary.failed} failed, all in {settings.output}/failed.jsonl:", file=sys.stderr)
        print("\n".join(f"  {failure}" for failure in summary.failures), file=sys.stderr)
    return 1 if summary.failed else 0
