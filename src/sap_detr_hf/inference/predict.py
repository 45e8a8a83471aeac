"""Predicting any number of images: opened ahead, batched by size, written one by one."""

import contextlib
import sys
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import torch
from PIL import Image
from tqdm.auto import tqdm

from ..files import prepare_folder
from ..model.pretrained_model import SapDetrPreTrainedModel
from ..weights.pretrained import AUTOCAST_DTYPES, check_device_and_dtype, load_pretrained
from .results import FILES, PICTURES, PredictionResults
from .salient_detection import SalientDetections, salient_detections
from .sources import InputImage, InputImages

CANDIDATES = 300  # best detections of an image that suppression chooses from, as many as in the released evaluation
SHOWN_FAILURES = 20


@dataclass(frozen=True)
class PredictionSettings:
    """Everything a prediction depends on; the text beside a field is its reason.

    Raises:
        ValueError: a number is out of range, or a choice is none of those offered.
        ImportError: suppression is asked for and torchvision is not installed.
    """

    model: Annotated[str, "model directory or Hub id"]
    inputs: Annotated[list[str], "files, folders, patterns, addresses, videos, or one COCO JSON"]
    output: Annotated[str, "folder that gets the results"]
    images: Annotated[str | None, "image folder of a COCO JSON, where it is not found by itself"] = None
    every: Annotated[int, "take every Nth frame of videos"] = 1
    threshold: Annotated[float, "only detections of a higher score; 0 for COCO AP"] = 0.5
    top_k: Annotated[int, "detections of an image at most"] = 300
    nms: Annotated[float | None, "class-wise non-maximum suppression above this IoU; SAP-DETR needs none"] = None
    batch_size: Annotated[int, "images of equal size that run together"] = 1
    workers: Annotated[int, "threads that open and resize images ahead"] = 2
    device: Annotated[str, "where the model runs"] = "auto"
    dtype: Annotated[str, "float32, or autocast to bfloat16 or float16"] = "float32"
    pictures: Annotated[bool, "write pictures with boxes, names and points"] = True
    overwrite: Annotated[bool, "replace the results of an earlier prediction in the folder"] = False
    timeout: Annotated[float, "seconds that a download may take"] = 20.0
    max_download: Annotated[float, "largest download in MiB"] = 64.0

    def __post_init__(self):
        smallest = {"every": 1, "threshold": 0, "top_k": 1, "batch_size": 1, "workers": 0}
        for name, limit in smallest.items():
            if not getattr(self, name) >= limit:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least {limit}.")
        for name in ("timeout", "max_download"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be above 0.")
        check_device_and_dtype(self.device, self.dtype)
        if self.nms is not None:
            if not 0 <= self.nms <= 1:
                raise ValueError(f"nms is {self.nms}, but an IoU lies between 0 and 1.")
            _suppression()


@dataclass
class PredictionSummary:
    """What became of the inputs.

    Args:
        images: predicted images.
        detections: in all of them.
        failed: inputs that could not be predicted.
        failures: why, for the first 20 of them, by name.
    """

    images: int = 0
    detections: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)


@dataclass
class PreparedImage:
    """An image as the model gets it, or why there is none.

    Args:
        source: where it comes from.
        number: its place among all images, from 1.
        image: upright RGB.
        inputs: `pixel_values` (1, 3, height, width) and `pixel_mask` (1, height, width) from the image processor.
        error: why there is no image.
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
    model, image_processor = load_detector(settings.model, settings.device)
    prepare_folder(output, settings.overwrite, results=(*FILES, PICTURES))
    predictor = Predictor(model, image_processor, settings)
    summary = PredictionSummary()
    with (
        PredictionResults(output, model.config.category_ids, settings.pictures) as results,
        tqdm(total=total, desc="predict", unit="image", mininterval=0.5) as progress,
    ):
        for prepared, found in predictor.predict(sources):
            if isinstance(found, Exception):
                results.fail(prepared.source, found)
                _report(summary, prepared.source, found)
            else:
                assert prepared.image is not None
                image_id = prepared.source.image_id
                number = prepared.number if image_id is None else image_id
                results.add(prepared.source, number, prepared.image, found)
            progress.update()
    summary.images, summary.detections, summary.failed = results.images, results.detections, results.failed
    return summary


def load_detector(name: str, device: str = "auto") -> tuple[SapDetrPreTrainedModel, Any]:
    """A saved SAP-DETR in float32, in evaluation mode, and its image processor.

    Args:
        name: model directory or Hub id.
        device: "auto" takes CUDA where there is a device.

    Raises:
        OSError: there is no such model.
        ValueError: it is no complete SAP-DETR.
    """
    model, image_processor = load_pretrained(name)
    if not isinstance(model, SapDetrPreTrainedModel):
        raise ValueError(f"{name} is a model of the type {model.config.model_type}, not sap_detr or sap_dino_detr.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)  # type: ignore[arg-type]  # transformers' decorator hides the signature
    return model.eval(), image_processor


class Predictor:
    """Detections of any number of images, with a bounded number of them in memory.

    Images of different size never share a batch: where none is padded for its neighbours, none depends on them.
    """

    def __init__(self, model: SapDetrPreTrainedModel, image_processor: Any, settings: PredictionSettings):
        self.model = model
        self.image_processor = image_processor
        self.settings = settings

    def predict(self, sources: Iterable[InputImage]) -> Iterator[tuple[PreparedImage, SalientDetections | Exception]]:
        """Each image with its detections, or why there are none, in the order of the sources."""
        batch_size = self.settings.batch_size
        # Where sizes are mixed, a longer look ahead fills the batches better.
        window = 1 if batch_size == 1 else 4 * batch_size
        prepared = self._prepared(sources, ahead=window)
        while images := list(islice(prepared, window)):
            found: dict[int, SalientDetections | Exception] = {}
            for batch in plan_batches(images, batch_size):
                found |= zip((image.number for image in batch), self._detect(batch), strict=True)
            for image in images:
                yield image, image.error or found[image.number]
            del images  # before the next ones come

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
            inputs = self.image_processor(images=image, return_tensors="pt")
        except (OSError, ValueError) as error:
            return PreparedImage(source, number, error=error)
        return PreparedImage(source, number, image, dict(inputs))

    @torch.no_grad()
    def _detect(self, batch: list[PreparedImage]) -> list[SalientDetections | Exception]:
        """Detections of images of one size."""
        inputs = {name: torch.cat([image.inputs[name] for image in batch]) for name in batch[0].inputs}
        if "pixel_mask" in inputs and inputs["pixel_mask"].all():
            del inputs["pixel_mask"]  # attention without a mask is faster
        with self._autocast():
            outputs = self.model(**{name: values.to(self.model.device) for name, values in inputs.items()})
        sizes = [image.image.size for image in batch if image.image is not None]
        found = salient_detections(
            outputs,
            sizes,
            self.model.config.id2label,
            self.settings.threshold,
            max(self.settings.top_k, CANDIDATES),
        )
        finite = outputs.logits.isfinite().flatten(1).all(1) & outputs.pred_boxes.isfinite().flatten(1).all(1)
        return [
            self._chosen(detections) if ok else _not_finite(image)
            for image, detections, ok in zip(batch, found, finite.tolist(), strict=True)
        ]

    def _autocast(self) -> contextlib.AbstractContextManager:
        dtype = AUTOCAST_DTYPES[self.settings.dtype]
        return contextlib.nullcontext() if dtype is None else torch.autocast(self.model.device.type, dtype=dtype)

    def _chosen(self, detections: SalientDetections) -> SalientDetections:
        if self.settings.nms is not None:
            keep = _suppression()(detections.boxes, detections.scores, detections.classes, self.settings.nms)
            detections = detections.select(keep)  # best first
        return detections.select(torch.arange(min(self.settings.top_k, len(detections))))


def plan_batches(images: list[PreparedImage], batch_size: int) -> list[list[PreparedImage]]:
    """Groups of at most `batch_size` images of one size as the model gets it; what has an error is left out."""
    groups = defaultdict(list)
    for image in images:
        if image.error is None:
            groups[image.inputs["pixel_values"].shape].append(image)
    return [group[i : i + batch_size] for group in groups.values() for i in range(0, len(group), batch_size)]


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


def _not_finite(image: PreparedImage) -> ValueError:
    return ValueError(
        f"{image.source.name}: the model's output is not finite: its weights are broken (a diverged training), or its "
        "type has too small a range (try float32 or bfloat16)."
    )


def _report(summary: PredictionSummary, source: InputImage, error: Exception) -> None:
    message = str(error) if source.name in str(error) else f"{source.name}: {error}"
    tqdm.write(f"skipped: {message}", file=sys.stderr)
    if len(summary.failures) < SHOWN_FAILURES:
        summary.failures.append(message)
