"""Run the demo and print where its results are."""

from pathlib import Path

from sap_detr_cli.main import fail
from sap_detr_cli.settings.demo import DemoSettings

from ..demo.run import run_demo
from ..training.failure import TrainingFailed


def run(settings: DemoSettings) -> int:
    """Run the demo; 1 for a failed or stopped training."""
    overrides = {} if settings.epochs is None else {"epochs": settings.epochs}
    output = Path(settings.output)
    try:
        result = run_demo("demo", output, settings.train, settings.val, settings.size, **overrides)
    except (TrainingFailed, InterruptedError) as error:
        return fail(error, 1)
    print(f"\nCOCO AP {result['AP']:.3f}, AP50 {result['AP50']:.3f}; seconds: {result['seconds']}")
    print(f"Look at {output}/pictures/all.png (boxes, names, salient points),")
    print(f"{output}/model/curves.png and {output}/evaluation/; the model is in {output}/model.")
    return 0
