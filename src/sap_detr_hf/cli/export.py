"""Export a model, and print how it compares with torch."""

from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from sap_detr_cli.main import fail
from sap_detr_cli.settings.export import ExportSettings

from ..export.comparison import ExportError, difference_table
from ..export.packages import require_packages
from ..export.run import export_model
from ..inference.detector import prepare_batch, prepared_size
from ..inference.sources import InputImages
from ..weights.pretrained import load_detector

PHOTOGRAPHS = ((480, 640), (640, 427))  # height and width of typical ones


class CalibrationPictures(Sequence):
    """Pictures as a model gets them, opened anew at each use.

    Raises:
        OSError, ValueError: there are none, or one cannot be opened; the message names it.
    """

    def __init__(self, inputs: str, image_processor: Any, count: int):
        found = list(InputImages([inputs]))
        self.sources = [found[i * len(found) // count] for i in range(count)] if len(found) > count else found
        self.image_processor = image_processor
        for source in self.sources:
            source.load()

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: Any) -> Any:
        return prepare_batch(self.image_processor, self.sources[index].load())


def run(settings: ExportSettings) -> int:
    """Export and compare; 1 for an export that differs from torch."""
    require_packages(settings.path.suffix)
    model, image_processor = load_detector(settings.model, "cpu")
    pictures = None
    if settings.calibrate is not None:
        pictures = CalibrationPictures(settings.calibrate, image_processor, settings.calibration_images)
    sizes = [prepared_size(image_processor, *size) for size in PHOTOGRAPHS]
    if settings.in_folder:
        settings.path.parent.mkdir(exist_ok=True)
    steps = tqdm(
        total=3 if pictures is None else 5, unit="step", bar_format="export: {n_fmt}/{total_fmt} {desc} {elapsed}"
    )

    def begin(step: str) -> None:
        steps.n += 1
        steps.set_description_str(step)

    try:
        with steps:
            done = export_model(model, image_processor, settings.path, settings.tolerance, pictures, sizes, begin)
    except ExportError as error:
        return fail(error, 1)
    print(f"Largest differences from torch in float32:\n{difference_table(done.differences)}")
    if pictures is not None:
        print(f"int8, calibrated on {len(pictures)} pictures: {done.agreement:.1%} of torch's best detections")
    print("\n".join(f"{file}: {file.stat().st_size / 1e6:.1f} MB" for file in done.files))
    return 0
