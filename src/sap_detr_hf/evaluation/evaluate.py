"""Predicting a data set on any number of processes, and its COCO AP."""

import contextlib
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data.dataset import DetectionData, collate, image_name, open_row_image
from ..distributed import all_processes_together
from ..evaluation_mode import evaluation_mode
from ..model.detection_processing import released_image_size
from .coco_metric import CocoMetric, CocoResult, GroundTruth

# Predictions are gathered after about this many images of each process: bounds what is in flight (8 kB an image).
IMAGES_PER_GATHER = 64


@dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate_detections`, the same on every process.

    Attributes:
        metrics: the 12 COCO numbers by name (`coco_metric.METRIC_NAMES`), in 0..1, NaN where undefined.
        per_class: one dict a category: category_id, name, boxes and the 12 numbers.
        precision: (10, 101, classes), see `CocoResult`.
        images: number of images.
        seconds: for loading and predicting them (without the AP itself).
        predictions: the detections; on the main process only, else None.
    """

    metrics: dict[str, float]
    per_class: list[dict[str, Any]]
    precision: np.ndarray
    images: int
    seconds: float
    predictions: CocoMetric | None

    @property
    def images_per_second(self) -> float:
        """Images a second, over all processes together."""
        return self.images / self.seconds


class ImagePrediction(NamedTuple):
    """Detections of one image: x, y, width, height in pixels of the original image, the data set's own category ids."""

    image_id: int
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
    progress: bool = True,
) -> Evaluation:
    """COCO AP of a model on the images of `dataset`. With several processes every one of them must call this.

    Each image is predicted once: batches are numbered, and process i of n takes the batches i, i + n, i + 2n, ... The
    batches do not depend on the number of processes, so neither do the numbers. By default only images of one size
    (after resizing) share a batch: without padding an image's result does not depend on its neighbours, so the numbers
    do not depend on the batch size either, up to rounding.

    Nothing of the training is touched: neither the random state nor which modules are in training mode.

    Args:
        model: gives `logits` (B, N, K) and `pred_boxes` (B, N, 4) for `pixel_values` and `pixel_mask`, which is `None`
            without padding; its config's `category_ids` say the category id of each class index (none: the index is
            the id).
        dataset: rows as in `DetectionData.dataset`; `objects` is not read.
        image_processor: resizes, normalises and post-processes, as at prediction.
        truth: of these images, or of more.
        accelerator: several processes, and the device; without it, one process on the model's device.
        batch_size: images a batch and process.
        pad_batches: batches in the order of the rows, padded to their largest image (as the released evaluation does).
        num_workers: loader processes of each process.
        autocast_dtype: run the model under autocast with this type.
        top_k: detections kept of each image, over all classes.
        progress: show a progress bar on the main process.

    Raises:
        OSError: an image cannot be read; ValueError: its size is not that of the row, the model's output is not finite,
            or the truth lacks an image. Raised on all processes together, naming the image.
    """
    if not len(dataset):
        raise ValueError("There are no images to evaluate")
    metric = CocoMetric(truth.select(dataset["image_id"]))
    model = model.module if isinstance(model, DistributedDataParallel) else model
    images = EvaluationImages(dataset, image_processor)
    batches = plan_batches(images.processed_sizes(), batch_size, pad_batches)
    predict = _Predictor(model, image_processor, accelerator, autocast_dtype, top_k)
    started = time.perf_counter()
    with evaluation_mode(model):
        for prediction in _predict_on_all_processes(predict, images, batches, accelerator, num_workers, progress):
            metric.add(*prediction)
    seconds = time.perf_counter() - started
    result = metric.compute() if accelerator is None else _compute_together(metric, accelerator)
    is_main = accelerator is None or accelerator.is_main_process
    return Evaluation(
        result.metrics, result.per_class, result.precision, len(dataset), seconds, metric if is_main else None
    )


def plan_batches(sizes: list[tuple[int, int]], batch_size: int, pad_batches: bool = False) -> list[list[int]]:
    """Numbers of the images of each batch.

    Args:
        sizes: height and width of each image as the model gets it.
        batch_size: images a batch.
        pad_batches: take the images in order; otherwise a batch holds images of one size, the largest size first, so
            that too large a batch shows at once.
    """
    groups = defaultdict(list)
    for index, size in enumerate(sizes):
        groups[(0, 0) if pad_batches else size].append(index)
    ordered = sorted(groups.items(), key=lambda group: (-group[0][0] * group[0][1], group[0]))
    return [indices[i : i + batch_size] for _, indices in ordered for i in range(0, len(indices), batch_size)]


def processed_size(image_processor: Any, height: int, width: int) -> tuple[int, int]:
    """Height and width of an image after the processor resized it, without padding."""
    size = image_processor.size
    if image_processor.do_resize and size.get("shortest_edge") and size.get("longest_edge"):
        return released_image_size(height, width, size["shortest_edge"], size["longest_edge"])
    if not image_processor.do_resize:
        return height, width
    blank = np.zeros((height, width, 3), dtype=np.uint8)
    return tuple(image_processor(images=blank, do_pad=False, return_tensors="pt")["pixel_values"].shape[-2:])


class EvaluationImages(torch.utils.data.Dataset):
    """Images of a data set's rows, prepared for the model.

    An image that cannot be read is one even colour and carries its error: every process runs its batch to the end, and
    all raise together afterwards, where a lone exception would leave the others waiting.
    """

    def __init__(self, dataset: Any, image_processor: Any):
        self.dataset = dataset
        self.image_processor = image_processor

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.dataset[index]
        error = None
        try:
            image = open_row_image(row)
            pixel_values = self.image_processor(images=image, do_pad=False, return_tensors="pt")["pixel_values"][0]
        except (OSError, ValueError) as unreadable:
            error = unreadable
            pixel_values = torch.zeros(3, *processed_size(self.image_processor, row["height"], row["width"]))
        labels = {"image_id": row["image_id"], "orig_size": (row["height"], row["width"]), "name": image_name(row)}
        return {"pixel_values": pixel_values, "labels": {**labels, "error": error}}

    def processed_sizes(self) -> list[tuple[int, int]]:
        """Height and width of every image as the model gets it, from the rows' sizes alone."""
        originals = list(zip(self.dataset["height"], self.dataset["width"], strict=True))
        sizes = {original: processed_size(self.image_processor, *original) for original in set(originals)}
        return [sizes[original] for original in originals]


class _Predictor:
    """Detections of a batch of `EvaluationImages`."""

    def __init__(
        self,
        model: torch.nn.Module,
        image_processor: Any,
        accelerator: Accelerator | None,
        autocast_dtype: torch.dtype | None,
        top_k: int,
    ):
        self.model = model
        parameter = next(model.parameters())
        self.device = parameter.device if accelerator is None else accelerator.device
        self.dtype = parameter.dtype
        self.post_process = image_processor.post_process_object_detection
        self.autocast_dtype = autocast_dtype
        self.top_k = top_k
        category_ids = getattr(model.config, "category_ids", None)
        self.category_ids = None if category_ids is None else np.array(category_ids, dtype=np.int64)

    @torch.no_grad()
    def __call__(self, batch: dict[str, Any]) -> list[ImagePrediction | Exception]:
        """Per image its detections, or why there are none."""
        pixel_values = batch["pixel_values"].to(self.device, self.dtype, non_blocking=True)  # (B, 3, H, W)
        pixel_mask = batch["pixel_mask"]  # (B, H, W)
        # Attention without a mask is faster
        pixel_mask = None if pixel_mask.all() else pixel_mask.to(self.device, non_blocking=True)
        with self._autocast():
            outputs = self.model(pixel_values=pixel_values, pixel_mask=pixel_mask)
        labels = batch["labels"]
        found = self.post_process(
            outputs, threshold=0.0, target_sizes=[label["orig_size"] for label in labels], top_k=self.top_k
        )
        finite = outputs.logits.isfinite().flatten(1).all(1) & outputs.pred_boxes.isfinite().flatten(1).all(1)
        return [
            label["error"] or (self._prediction(label, detections) if ok else _not_finite(label))
            for label, detections, ok in zip(labels, found, finite.tolist(), strict=True)
        ]

    def _autocast(self) -> contextlib.AbstractContextManager:
        if self.autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast_dtype)

    def _prediction(self, label: dict[str, Any], detections: dict[str, torch.Tensor]) -> ImagePrediction:
        corners = detections["boxes"].float()  # (n, 4) x1, y1, x2, y2
        boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1)  # (n, 4) x, y, width, height
        indices = detections["labels"].cpu().numpy()  # (n,)
        category_ids = indices if self.category_ids is None else self.category_ids[indices]
        return ImagePrediction(
            label["image_id"], boxes.cpu().numpy(), detections["scores"].float().cpu().numpy(), category_ids
        )


def _not_finite(label: dict[str, Any]) -> ValueError:
    return ValueError(
        f"The model's output for {label['name']} (image id {label['image_id']}) is not finite: its weights are broken "
        "(a diverged training), or its type has too small a range (try float32 or bfloat16)"
    )


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
    loader = _loader(images, mine + [batches[0]] * (rounds - len(mine)), num_workers, predict.device)
    rounds_per_gather = max(1, IMAGES_PER_GATHER // max(len(batch) for batch in batches))
    waiting: list[ImagePrediction | Exception] = []
    for done, batch in enumerate(_with_progress(loader, rounds, progress and rank == 0), start=1):
        outcome = predict(batch)
        waiting += outcome if done <= len(mine) else []
        if done % rounds_per_gather == 0 or done == rounds:
            gathered = waiting if world == 1 else gather_object(waiting)
            yield from _all_predictions(gathered)
            waiting = []


def _loader(images: EvaluationImages, batches: list[list[int]], num_workers: int, device: torch.device) -> DataLoader:
    return DataLoader(
        images,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        # An own generator: the default one would draw the workers' seed from the training's random state.
        generator=torch.Generator(),
    )


def _with_progress(loader: DataLoader, rounds: int, show: bool) -> tqdm:
    return tqdm(loader, total=rounds, desc="evaluate", unit="batch", disable=not show, mininterval=1.0)


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
