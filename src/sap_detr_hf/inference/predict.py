"""Predict any number of images: load them in advance, batch them by size, write them one by one."""

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm.auto import tqdm

from sap_detr_cli.settings.predict import PredictionSettings

from ..export.exported import ExportedModel
from ..files import prepare_folder
from ..model.pretrained_model import SapDetrPreTrainedModel
from ..weights.pretrained import AUTOCAST_DTYPES, check_device_and_dtype, load_detector
from .detector import Detector, SalientDetections, plan_batches, prepare_image
from .exports import load_exported
from .pre_labels import PRE_LABELS, PreLabels
from .results import FILES, PICTURES, PredictionResults
from .sources import InputImage, InputImages

CANDIDATES = 300  # best detections of an image that suppression chooses from, as many as in the released evaluation
SHOWN_FAILURES = 20


@dataclass
class PredictionSummary:
    """What became of the inputs: predicted images, detections in all of them, inputs that failed.

    Args:
        failures: why the first `SHOWN_FAILURES` inputs failed, by name.
    """

    images: int
    detections: int
    failed: int
    failures: list[str]


@dataclass
class PreparedImage:
    """An image as the model gets it, or why there is none.

    Args:
        source: where it comes from.
        number: its place among all images, from 1.
        image: upright RGB.
        inputs: see [`prepare_image`]; none where it is detected in slices.
        error: reason why the image cannot be read.
    """

    source: InputImage
    number: int
    image: Image.Image | None = None
    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    error: Exception | None = None


def predict(settings: PredictionSettings) -> PredictionSummary:
    """Predict all inputs and write the results, see `PredictionResults`; what is broken is reported and skipped.

    Raises:
        ValueError, OSError, ImportError: settings, inputs as a whole, model or output that cannot be used; before the
            first prediction, except for a full disk.
    """
    check_device_and_dtype(settings.device, settings.dtype)
    if settings.nms is not None:
        _suppression()
    if settings.slice is not None:
        from . import slices  # noqa: F401  # where SAHI is absent, say so before the model is loaded
    output = Path(settings.output)
    _check_outside(settings.inputs, output)
    sources = InputImages(
        settings.inputs,
        settings.images,
        settings.every,
        left_out=output,
        timeout=settings.timeout,
        max_bytes=int(settings.max_download * 2**20),
    )
    total = sources.count()
    model, image_processor = load_exported(settings) or load_detector(settings.model, settings.device)
    prepare_folder(output, settings.overwrite, results=(*FILES, PICTURES, PRE_LABELS))
    predictor = Predictor(model, image_processor, settings)
    failures: list[str] = []
    form = settings.as_annotations
    pre_labels = PreLabels(output / PRE_LABELS, form, sources, model.config) if form else None
    with (
        PredictionResults(output, model.config.category_ids, settings.pictures) as results,
        pre_labels.writer if pre_labels else nullcontext(),
        tqdm(total=total, desc="predict", unit="image", mininterval=0.5) as progress,
    ):
        for prepared, found in predictor.predict(sources):
            if isinstance(found, Exception):
                results.fail(prepared.source, found)
                message = str(found) if prepared.source.name in str(found) else f"{prepared.source.name}: {found}"
                tqdm.write(f"skipped: {message}", file=sys.stderr)
                failures = [*failures, message][:SHOWN_FAILURES]
            else:
                assert prepared.image is not None
                image_id = prepared.source.image_id
                number = prepared.number if image_id is None else image_id
                results.add(prepared.source, number, prepared.image, found)
                if pre_labels is not None:
                    pre_labels.add(prepared.source, number, prepared.image, found)
            progress.update()
    return PredictionSummary(results.images, results.detections, results.failed, failures)


class Predictor:
    """Detections of any number of images, with a bounded number of them in memory.

    Images of different size never share a batch: where none is padded for its neighbors, none depends on them.
    """

    def __init__(
        self, model: SapDetrPreTrainedModel | ExportedModel, image_processor: Any, settings: PredictionSettings
    ):
        self.settings = settings
        self.detector = Detector(
            model,
            image_processor,
            threshold=settings.threshold,
            top_k=max(settings.top_k, CANDIDATES),
            autocast_dtype=AUTOCAST_DTYPES[settings.dtype],
        )
        self.sliced: Any = None
        if settings.slice is not None:
            from .slices import SlicedDetector

            self.sliced = SlicedDetector.of_settings(self.detector, settings, top_k=settings.top_k)

    def predict(self, sources: Iterable[InputImage]) -> Iterator[tuple[PreparedImage, SalientDetections | Exception]]:
        """Each image with its detections, or why there are none, in the order of the sources."""
        batch_size = self.settings.batch_size if self.sliced is None else 1
        # Where sizes are mixed, a longer look ahead fills the batches better.
        window = 1 if batch_size == 1 else 4 * batch_size
        prepared = self._prepared(sources, ahead=window)
        while images := list(islice(prepared, window)):
            found: dict[int, SalientDetections | Exception] = {}
            ready = [image for image in images if image.error is None]
            sizes = [image.inputs["pixel_values"].shape[-2:] if image.inputs else (0, 0) for image in ready]
            for batch in plan_batches(sizes, batch_size):
                found |= zip((ready[i].number for i in batch), self._detect([ready[i] for i in batch]), strict=True)
            for image in images:
                yield image, image.error or found[image.number]
            del images, ready  # before the next ones come

    def _prepared(self, sources: Iterable[InputImage], ahead: int) -> Iterator[PreparedImage]:
        """Open and resize in threads, at most `ahead` images more than were asked for."""
        numbered = enumerate(sources, start=1)
        if self.settings.workers == 0:
            yield from (self._prepare(number, source) for number, source in numbered)
            return
        pool = ThreadPoolExecutor(self.settings.workers)
        waiting: deque[Future[PreparedImage]] = deque()
        try:
            for number, source in numbered:
                waiting.append(pool.submit(self._prepare, number, source))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _prepare(self, number: int, source: InputImage) -> PreparedImage:
        try:
            image = source.load()
            inputs = prepare_image(self.detector.image_processor, image) if self.sliced is None else {}
        except (OSError, ValueError) as error:
            return PreparedImage(source, number, error=error)
        return PreparedImage(source, number, image, inputs)

    def _detect(self, batch: list[PreparedImage]) -> list[SalientDetections | ValueError]:
        """Detections of images of one size; of one image where it is detected in slices."""
        if self.sliced is not None:
            found = [self.sliced(image.image, image.source.name) for image in batch]
        else:
            inputs = {name: torch.stack([image.inputs[name] for image in batch]) for name in batch[0].inputs}
            sizes = [image.image.size for image in batch if image.image is not None]
            found = self.detector(inputs, sizes, [image.source.name for image in batch])
        return [each if isinstance(each, ValueError) else self._chosen(each) for each in found]

    def _chosen(self, detections: SalientDetections) -> SalientDetections:
        if self.settings.nms is not None:
            keep = _suppression()(detections.boxes, detections.scores, detections.classes, self.settings.nms)
            detections = detections.select(keep)  # best first
        return detections.select(torch.arange(min(self.settings.top_k, len(detections))))


def _suppression() -> Any:
    try:
        from torchvision.ops import batched_nms
    except ImportError as error:
        raise ImportError("Non-maximum suppression needs torchvision: pip install torchvision.") from error
    return batched_nms


def _check_outside(inputs: list[str], output: Path) -> None:
    """Named inputs must not lie where results are replaced (folders and patterns leave the output out)."""
    if not inputs:
        raise ValueError("There is nothing to predict: name at least one file, folder, pattern or address.")
    for name in inputs:
        if Path(name).exists() and Path(name).resolve().is_relative_to(output.resolve()):
            raise ValueError(f"{name} lies in the output folder {output}: name another folder for the results.")
