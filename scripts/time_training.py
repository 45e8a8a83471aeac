"""Does the loader keep up? `python scripts/time_training.py recipes/….yaml` with all settings that train.py takes.

Images a second of the loader alone and of the training step alone; `--max_steps N` steps count. Nothing is kept.
"""

import json
import sys

from sap_detr_hf.training.failure import TrainingFailed
from sap_detr_hf.training.settings import settings_from_arguments
from sap_detr_hf.training.throughput import measure_throughput


def main(argv: list[str] | None = None) -> int:
    """Measures and prints; 0 when done, 2 for wrong settings or data, 1 for a failed run."""
    try:
        result = measure_throughput(settings_from_arguments(argv, description=__doc__))
    except TrainingFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(result, indent=2))
    ratio = result["loader_over_training"]
    advice = "it keeps up" if ratio > 1 else "the model waits: more `workers`, smaller images, or a faster disk"
    print(f"The loader is {ratio:.1f} times as fast as training with {result['workers']} workers: {advice}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
