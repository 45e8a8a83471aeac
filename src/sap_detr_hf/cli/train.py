"""Train from a recipe and the command line."""

import os
import shlex
import sys

from sap_detr_cli.main import fail
from sap_detr_cli.settings.train import TrainingSettings

from ..training.failure import TrainingFailed
from ..training.loop import train


def run(settings: TrainingSettings) -> int:
    """Print the settings, train, print the result; 0 also where a signal stopped the training, 1 for a failed run."""
    main_process = os.environ.get("RANK", "0") == "0"
    if main_process and not settings.choose_rest:  # else the table of what is chosen, and settings.yaml
        print(settings.to_yaml(), file=sys.stderr, flush=True)
    try:
        result = train(settings)
    except TrainingFailed as error:
        return fail(error, 1)
    if main_process:
        print("  ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in result.items()))
        if result["status"] != "interrupted":
            command = shlex.join(["evaluate", settings.output_dir, str(settings.data), "--output", "evaluation"])
            print(f"model: {settings.output_dir}. Next: sap-detr {command}")
    return 0
