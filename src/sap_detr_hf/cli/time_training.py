"""Measure loader and training step alone."""

import json

from sap_detr_cli.main import fail
from sap_detr_cli.settings.time_training import TimeTrainingSettings

from ..training.failure import TrainingFailed
from ..training.throughput import measure_throughput


def run(settings: TimeTrainingSettings) -> int:
    """Measure and print; 1 for a failed run."""
    try:
        result = measure_throughput(settings)
    except TrainingFailed as error:
        return fail(error, 1)
    print(json.dumps(result, indent=2))
    ratio = result["loader_over_training"]
    advice = "it keeps up" if ratio > 1 else "the model waits: more `workers`, smaller images, or a faster disk"
    print(f"The loader is {ratio:.1f} times as fast as training with {result['workers']} workers: {advice}.")
    return 0
