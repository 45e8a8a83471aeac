"""Generate the demo's data set."""

from sap_detr_cli.settings.make_digits import DigitsSettings

from ..demo.digits import make_digits


def run(settings: DigitsSettings) -> int:
    """Write the data set and print where it is."""
    width, height = settings.size
    files = make_digits(settings.output_dir, settings.train, settings.val, (width, height), seed=settings.seed)
    for split, path in files.items():
        print(f"{split}: {path}")
    return 0
