# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Train SAP-DETR from a recipe: `python scripts/train.py recipes/finetune.yaml --data DIR --model DIR`.

Several GPUs: `accelerate launch --config_file recipes/accelerate/gpu_4.yaml scripts/train.py recipes/….yaml`.
"""

import os
import sys

from sap_detr_hf.distributed import first_on_machine
from sap_detr_hf.training.failure import TrainingFailed
from sap_detr_hf.training.loop import train
from sap_detr_hf.training.settings import settings_from_arguments


def main(argv: list[str] | None = None) -> int:
    """Runs the training; 0 when finished or stopped by a signal, 2 for wrong settings or data, 1 for a failed run."""
    main_process = os.environ.get("RANK", "0") == "0"
    try:
        settings = settings_from_arguments(argv)
        if main_process:
            print(settings.to_yaml(), file=sys.stderr, flush=True)
        result = train(settings)
    except TrainingFailed as error:
        return _say(error, 1)
    except (ValueError, OSError) as error:
        return _say(error, 2)
    if main_process:
        print("  ".join(f"{name} {value}" for name, value in result.items()))
    return 0


def _say(error: Exception, code: int) -> int:
    if first_on_machine():
        print(f"error: {error}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
