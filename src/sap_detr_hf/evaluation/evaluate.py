"""Predict a data set on any number of processes and measure its COCO AP."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data.dataset import DetectionData
from ..data.samples import collate, image_name, open_row_image
from ..distributed import all_processes_together
from ..evaluation_mode import evaluation_mode
from ..inference.detector import Detector, SalientDetections, plan_batches, prepare_image, prepared_size
from .coco_metric import CocoMetric, CocoResult, GroundTruth

# Predictions are gathered after about this many images of each process: bounds what is in flight (8 kB an image).
IMAGES_PER_GATHER = 64


@dataclass(frozen=True)
class Evaluation(CocoResult):
    """Result of `evaluate_detections`, the same on every process.

    Attributes:
        images: number of images.
        seconds: for loading and predicting them (without the AP itself).
        evaluator: the package that computed AP, one of `coco_evaluator.EVALUATORS`.
        predictions: the detections; on the main process only, else None.
    """

    images: int
    seconds: float
    evaluator: str
    predictions: CocoMetric | None

    @property
    def images_per_second(self) -> float:
        """Images a second, over all processes together."""
        return self.images / self.seconds


class ImagePrediction(NamedTuple):
    """Detections of one image: x, y, width, height in pixels of the original image, the data set's own category ids."""

    image_id: int | str
    boxes: np.ndarray  # (n, 4) float32
    scores: np.ndarray  # (n,) float32
    category_ids: np.ndarray  # (n,) int64


def ground_truth(data: DetectionData) -> GroundTruth:
    """The truth of a data set: its annotation file, or the rows where there is none; crowd regions included."""
    if data.annotation_file is not None:
        return GroundTruth.from_json(data.annotation_file)
    return GroundTruth.from_rows(data.dataset, data.categories)


def evaluate_detections(
    model: torch.nn.Module,
    dataset: Any,
    image_processor: Any,
    truth: GroundTruth,
    accelerator: Accelerator | None = None,
    *,
    batch_size: int = 1,
    pad_batches: bool = False,
    num_workers: int = 0,
    autocast_dtype: torch.dtype | None = None,
    top_k: int = 300,
    sliced: Callable[[Detector], Any] | None = None,
    progress: bool = True,
) -> Evaluation:
    """COCO AP of a model on the images of `dataset`. With several processes every one of them must call this.

    Process i of n predicts the batches i, i + n, i + 2n, ... The batches do not depend on the number of processes, so
    neither do the numbers. By default only images of one size (after resizing) share a batch: without padding an
    image's result does not depend on its neighbors, so the numbers do not depend on the batch size either, up to
    rounding. Neither the random state of a training nor which modules are in training mode changes.

    Args:
        model: gives `logits` (B, N, K) and `pred_boxes` (B, N, 4) for `pixel_values` and `pixel_mask`, which is `None`
            without padding; its config's `category_ids` say the category id of each class index (none: the index is
            the id).
        dataset: rows as in `DetectionData.dataset`; `objects` is not read.
        image_processor: resizes, normalizes and post-processes, as at prediction.
        truth: of these images, or of more.
        accelerator: several processes, and the device; without it, one process on the model's device.
        batch_size: images a batch.
        pad_batches: batches in the order of the rows, padded to their largest image (as the released evaluation does).
        num_workers: loader processes of each process.
        autocast_dtype, top_k: see [`Detector`].
        sliced: gives the `SlicedDetector` that detects in slices of each image; it has its own batches and `top_k`.

    Raises:
        OSError: an image cannot be read; ValueError: its size is not that of the row, the model's output is not finite,
            or the truth lacks an image. Raised on all processes together, naming the image.
    """
    if not len(dataset):
        raise ValueError("There are no images to evaluate")
    metric = CocoMetric(truth.select(dataset["image_id"]))
    model = model.module if isinstance(model, DistributedDataParallel) else model
    images = EvaluationImages(dataset, image_processor, whole=sliced is not None)
    batches = plan_batches(images.processed_sizes(), batch_size if sliced is None else 1, pad_batches)
    device = None if accelerator is None else accelerator.device
    detector = Detector(model, image_processor, 0.0, top_k, autocast_dtype, device)
    predict = _Predictor(detector, sliced and sliced(detector))
    started = time.perf_counter()
    with evaluation_mode(model):
        for prediction in _predict_on_all_processes(predict, images, batches, accelerator, num_workers, progress):
            metric.add(*prediction)
    seconds = time.perf_counter() - started
    result = metric.compute() if accelerator is None else _compute_together(metric, accelerator)
    is_main = accelerator is None or accelerator.is_main_process
    own = metric if is_main else None
    return Evaluation(**vars(result), images=len(dataset), seconds=seconds, evaluator=metric.evaluator, predictions=own)


class EvaluationImages(torch.utils.data.Dataset):
    """Images of a data set's rows, prepared for the model, or `whole` for a detector that prepares their slices.

    An image that cannot be read is one even color and carries its error: every process runs its batch to the end, and
    all raise together afterwards, where a lone exception would leave the others waiting.
    """

    def __init__(self, dataset: Any, image_processor: Any, whole: bool = False):
        self.dataset, self.image_processor, self.whole = dataset, image_processor, whole

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.dataset[index]
        error = None
        try:
            image = open_row_image(row)
            inputs = {"image": image} if self.whole else prepare_image(self.image_processor, image)
        except (OSError, ValueError) as unreadable:
            error = unreadable
            shape = (3, *prepared_size(self.image_processor, row["height"], row["width"]))
            inputs = {"pixel_values": torch.zeros(shape)}
        size = (row["width"], row["height"])
        labels = {"image_id": row["image_id"], "size": size, "name": image_name(row), "error": error}
        return {**inputs, "labels": labels}

    def processed_sizes(self) -> list[tuple[int, int]]:
        """Height and width of every image as it is given, from the rows' sizes alone."""
        originals = list(zip(self.dataset["height"], self.dataset["width"], strict=True))
        if self.whole:
            return originals
        sizes = {original: prepared_size(self.image_processor, *original) for original in set(originals)}
        return [sizes[original] for original in originals]


class _Predictor:
    """Predictions of a batch of `EvaluationImages`, whole ones where `sliced` detects in their slices."""

    def __init__(self, detector: Detector, sliced: Any):
        self.detector, self.sliced = detector, sliced

    def __call__(self, batch: Any) -> list[ImagePrediction | Exception]:
        """Per image its detections, or why there are none."""
        if self.sliced is None:
            labels = batch["labels"]
            found = self.detector(batch, [label["size"] for label in labels], [label["name"] for label in labels])
        else:
            labels = [sample["labels"] for sample in batch]
            found = [each["labels"]["error"] or self.sliced(each["image"], each["labels"]["name"]) for each in batch]
        return [label["error"] or self._prediction(label, each) for label, each in zip(labels, found, strict=True)]

    def _prediction(self, label: dict[str, Any], found: SalientDetections | ValueError) -> ImagePrediction | ValueError:
        if isinstance(found, ValueError):
            return found
        classes = found.classes.numpy()  # (n,)
        ids = getattr(self.detector.model.config, "category_ids", None)
        category_ids = classes if ids is None else np.array(ids, dtype=np.int64)[classes]
        return ImagePrediction(label["image_id"], found.coco_boxes.numpy(), found.scores.numpy(), category_ids)


def _predict_on_all_processes(
    predict: _Predictor,
    images: EvaluationImages,
    batches: list[list[int]],
    accelerator: Accelerator | None,
    num_workers: int,
    progress: bool,
) -> Iterator[ImagePrediction]:
    """Yields every image's detections, on every process. Each process runs the model equally often."""
    rank, world = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    rounds = math.ceil(len(batches) / world)
    mine = batches[rank::world]
    # Sharded models (FSDP) must run in step: where no batch is left, one is run again and its result dropped.
    loader = DataLoader(
        images,
        batch_sampler=mine + [batches[0]] * (rounds - len(mine)),
        collate_fn=list if images.whole else collate,
        num_workers=num_workers,
        pin_memory=predict.detector.device.type == "cuda",
        # An own generator: the default one would draw the workers' seed from the training's random state.
        generator=torch.Generator(),
    )
    rounds_per_gather = max(1, IMAGES_PER_GATHER // max(map(len, batches)))
    waiting: list[ImagePrediction | Exception] = []
    hidden = not progress or rank != 0
    bar = tqdm(loader, total=rounds, desc="evaluate", unit="batch", disable=hidden, mininterval=1.0)
    for done, batch in enumerate(bar, start=1):
        outcome = predict(batch)
        waiting += outcome if done <= len(mine) else []
        if done % rounds_per_gather == 0 or done == rounds:
            yield from _all_predictions(waiting if world == 1 else gather_object(waiting))
            waiting = []


def _all_predictions(outcomes: list[ImagePrediction | Exception]) -> list[ImagePrediction]:
    errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    if errors:
        others = f" ({len(errors) - 1} more such images in this part of the data)" if len(errors) > 1 else ""
        raise (OSError if isinstance(errors[0], OSError) else ValueError)(f"{errors[0]}{others}")
    return [outcome for outcome in outcomes if isinstance(outcome, ImagePrediction)]


def _compute_together(metric: CocoMetric, accelerator: Accelerator) -> CocoResult:
    """`metric.compute()`, each process doing a share of the categories: for COCO it takes minutes on one core."""
    category_ids = sorted(metric.truth.category_names)[accelerator.process_index :: accelerator.num_processes]
    with all_processes_together():
        share = metric.evaluate_categories(category_ids)
    shares = gather_object([share])
    return metric.summarize({category_id: curves for share in shares for category_id, curves in share.items()})
