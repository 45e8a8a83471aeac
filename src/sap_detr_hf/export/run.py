"""An export from the model to its file, which appears once the comparison with torch has passed.

Reading order: `export_model` -> `traced_program`, `WRITERS`, `compare_with_torch`; for int8 `QUANTIZERS`, `agreement`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedModel

from ..files import SUFFIX
from .comparison import CHECKED_BATCHES, CHECKED_SIZES, Difference, compare_with_torch, require_equal
from .exported import ExportedModel
from .formats import WRITERS
from .graph import traced_program
from .int8 import QUANTIZERS, Pictures, agreement, require_agreement
from .metadata import detector_metadata
from .packages import require_packages

TOLERANCE = 1e-3


@dataclass(frozen=True)
class Export:
    """What was written, and how it compares with torch.

    Attributes:
        files: of the export.
        differences: of the float32 model, see [`compare_with_torch`].
        agreement: of the int8 model, see [`agreement`]; `None` for float32.
    """

    files: list[Path]
    differences: list[Difference]
    agreement: float | None


def export_model(
    model: PreTrainedModel,
    image_processor: Any,
    path: Path,
    tolerance: float = TOLERANCE,
    pictures: Pictures | None = None,
    real_sizes: Sequence[tuple[int, int]] = (),
    begin: Callable[[str], object] = lambda step: None,
) -> Export:
    """Write a model for any batch size, height and width, after a comparison with torch.

    Args:
        model: a detector of this package, on the CPU in float32; it is in evaluation mode afterwards.
        image_processor: its values travel with the file, see [`detector_metadata`].
        path: .onnx, .xml (beside it comes a .bin) or .pt2.
        tolerance: largest accepted difference of any output.
        pictures: calibrate int8 on these and write that; not for .pt2.
        real_sizes: heights and widths of images as the model gets them, for one more comparison each.
        begin: called with the name of each step when it starts: of a large model, some take a minute.

    Raises:
        ExportError: a difference exceeds the tolerance or is not a number, or int8 finds too little.
        ImportError: see [`require_packages`].
        ValueError: the model is not in float32.
    """
    require_packages(path.suffix)
    metadata = detector_metadata(model.config, image_processor)
    with TemporaryDirectory(prefix=f"{path.name}.", suffix=SUFFIX, dir=path.parent) as folder:
        file = Path(folder) / path.name
        begin("trace the model")
        program = traced_program(model)
        begin("write the file")
        WRITERS[path.suffix](program, metadata, file)
        begin("compare it with torch")
        exported = ExportedModel(file, trust_pt2=True)
        differences = compare_with_torch(model, exported, CHECKED_BATCHES, CHECKED_SIZES)
        differences += compare_with_torch(model, exported, (1,), real_sizes)
        require_equal(differences, tolerance)
        agreeing = None
        if pictures is not None:
            float_file, file = file, Path(folder) / "int8" / path.name
            file.parent.mkdir()
            begin("calibrate int8")
            QUANTIZERS[path.suffix](float_file, pictures, file)
            begin("compare int8 with torch")
            agreeing = agreement(model, ExportedModel(file), image_processor, pictures)
            require_agreement(agreeing)
        files = []
        for part in sorted(file.parent.glob(f"{file.stem}.*")):  # the .bin before its .xml
            files.append(part.replace(path.with_name(part.name)))
    return Export(files, differences, agreeing)
