"""Evaluate a model on data and write the report: metrics, predictions, tables, plots, mistakes, the worst images."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from matplotlib.figure import Figure
from PIL import Image
from torchvision.ops import box_convert

from sap_detr_cli.settings.evaluate import EvaluationSettings

from ..data.checks import check_validation
from ..data.classes import check_categories
from ..data.dataset import DetectionData, load_detection_data
from ..data.samples import open_row_image
from ..distributed import all_processes_together
from ..drawing import contact_sheet, draw_detections
from ..environment import hardware_name, software_versions, tf32_settings
from ..files import prepare_folder, whole_file
from ..inference.exports import exported_file, load_exported
from ..inference.sources import short_name
from ..markdown_table import markdown_table, table_text
from ..weights.pretrained import AUTOCAST_DTYPES, at_size, check_device_and_dtype, load_pretrained
from . import error_report
from .coco_evaluator import FASTER
from .coco_metric import METRIC_NAMES, CocoMetric
from .evaluate import Evaluation, evaluate_detections, ground_truth
from .mistakes import MATCH_IOU, ThresholdCurve, count_mistakes, threshold_curve

TABLE_COLUMNS = ("boxes", "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR100")
RECALLS = np.linspace(0, 1, 101)
SHOWN_SCORE = 0.5  # from which on detections count as mistakes, if no score has a highest F1
PREDICTIONS, CLASSES, PRECISION_RECALL, THRESHOLDS, MISTAKES, WORST, RESULTS, *_ = REPORT = (
    "predictions.json",
    "per_class.md",
    "precision_recall.png",
    "thresholds.png",
    "mistakes.json",
    "worst",
    "results.json",
    error_report.TABLES,
    error_report.PLOT,
)


def evaluate_model(settings: EvaluationSettings, command: str | None = None) -> dict[str, Any]:
    """Evaluates a saved model and writes the report into `settings.output`; several processes all call this.

    The folder gets results.json (numbers, settings, versions, hardware, time, and the command line `command`),
    predictions.json (COCO result format), per_class.md, precision_recall.png, thresholds.png, mistakes.md, .png and
    .json (error types, confused classes), and worst/ where asked for.

    Returns:
        The content of results.json, on every process (the main one's also has `best_threshold`, `errors` and
        `worst_images`).

    Raises:
        OSError, ValueError: a model, data set, image or folder that cannot be used; on all processes together.
    """
    check_device_and_dtype(settings.device, settings.dtype)
    accelerator = Accelerator(cpu=settings.device == "cpu" or exported_file(settings.model) is not None)
    output = Path(settings.output)
    with all_processes_together():
        sliced = None
        if settings.slice is not None:
            from ..inference.slices import SlicedDetector  # needs SAHI

            sliced = partial(SlicedDetector.of_settings, settings=settings)
        model, image_processor, data = _prepare(settings)
    with all_processes_together():
        check_validation(data, accelerator.process_index, accelerator.num_processes)
    with all_processes_together():
        if accelerator.is_main_process:
            prepare_folder(output, settings.overwrite, results=REPORT)
        truth = ground_truth(data)
    evaluation = evaluate_detections(
        model.to(accelerator.device),
        data.dataset,
        image_processor,
        truth,
        accelerator,
        batch_size=settings.batch_size,
        pad_batches=settings.pad_batches,
        num_workers=settings.workers,
        autocast_dtype=AUTOCAST_DTYPES[settings.dtype],
        sliced=sliced,
    )
    results = {
        "metrics": evaluation.metrics,
        "per_class": evaluation.per_class,
        "images": evaluation.images,
        "seconds": round(evaluation.seconds, 3),
        "images_per_second": round(evaluation.images_per_second, 3),
        "command": command,
        "settings": asdict(settings),
        "annotation_file": str(data.annotation_file) if data.annotation_file else None,
        "batch_size": settings.batch_size,
        "processes": accelerator.num_processes,
        "image_size": dict(image_processor.size),
        "hardware": hardware_name(accelerator.device),
        "tf32": tf32_settings(accelerator.device),
        "evaluator": evaluation.evaluator,
        "versions": software_versions(FASTER),
    }
    with all_processes_together():
        if accelerator.is_main_process:
            _write_report(output, results, evaluation, data, settings.worst)
    return results


def _prepare(settings: EvaluationSettings) -> tuple[torch.nn.Module, Any, DetectionData]:
    model, image_processor = load_exported(settings) or load_pretrained(settings.model)
    image_processor = at_size(image_processor, settings.shortest_edge, settings.longest_edge)
    options = {name: getattr(settings, name) for name in ("annotations", "images", "box_format", "cache_dir")}
    data = load_detection_data(settings.data, settings.split, **options)
    check_categories(data, model.config)
    if settings.max_images is not None:
        data.dataset = data.dataset.select(range(min(settings.max_images, len(data.dataset))))
    return model, image_processor, data


def _write_report(
    output: Path, results: dict[str, Any], evaluation: Evaluation, data: DetectionData, worst: int
) -> None:
    assert evaluation.predictions is not None  # on the main process
    evaluation.predictions.write_predictions(output / PREDICTIONS)
    (output / CLASSES).write_text(class_table(evaluation.per_class) + "\n", encoding="utf-8")
    plot_precision_recall(output / PRECISION_RECALL, evaluation.precision)
    curve = threshold_curve(evaluation.predictions)
    plot_thresholds(output / THRESHOLDS, curve)
    results["best_threshold"] = curve.best()
    threshold = results["best_threshold"]["threshold"] if results["best_threshold"] else SHOWN_SCORE
    mistakes = error_report.write_mistakes(output, evaluation.predictions, threshold)
    write_results(output / MISTAKES, mistakes)
    results["errors"] = mistakes["from_threshold"]["counts"]
    if worst:
        results["worst_images"] = draw_worst_images(
            output / WORST, data.dataset, evaluation.predictions, worst, threshold
        )
    # Last, so that a report with results.json is complete.
    write_results(output / RESULTS, results)


def write_results(path: str | os.PathLike, results: Mapping[str, Any]) -> None:
    """Writes a JSON file (aside, then renamed); NaN becomes null, which JSON has."""
    text = json.dumps(_without_nan(results), indent=2, allow_nan=False) + "\n"
    with whole_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


def metrics_table(metrics: Mapping[str, float]) -> str:
    """The 12 numbers, in per cent, as two Markdown tables: AP and AR."""
    tables = [(names, [_per_cent(metrics[name]) for name in names]) for names in (METRIC_NAMES[:6], METRIC_NAMES[6:])]
    return "\n\n".join(markdown_table(names, [numbers]) for names, numbers in tables)


def class_table(per_class: Sequence[Mapping[str, Any]]) -> str:
    """Markdown table of the classes, numbers in per cent; "-" where COCO has nothing to count."""
    rows = [
        [str(row["category_id"]), table_text(row["name"]), str(row["boxes"])]
        + [_per_cent(row[name]) for name in TABLE_COLUMNS[1:]]
        for row in per_class
    ]
    return markdown_table(["id", "class", *TABLE_COLUMNS], rows)


def plot_precision_recall(path: str | os.PathLike, precision: np.ndarray) -> Figure:
    """Precision (10, 101, classes), as in `CocoResult`, over recall as a PNG: the mean of all classes that have boxes.

    Returns the figure.
    """
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    counted = precision[:, :, (precision > -1).all(axis=(0, 1))]  # (10, 101, classes with boxes)
    if counted.size:
        mean = counted.mean(axis=2)  # (10, 101)
        curves = {"IoU 0.50": mean[0], "IoU 0.75": mean[5], "IoU 0.50:0.95": mean.mean(axis=0)}
        for name, curve in curves.items():
            axes.plot(RECALLS, curve, label=f"{name}: {100 * curve.mean():.1f}")
        axes.legend(title="average precision")
    axes.set_title(f"{counted.shape[2]} classes, all areas, 100 detections an image")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120, format="png")
    return figure


def plot_thresholds(path: str | os.PathLike, curve: ThresholdCurve) -> Figure:
    """Precision, recall and F1 over the score threshold, as a PNG: where to cut. Returns the figure."""
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="score threshold", xlim=(0, 1), ylim=(0, 1.02))
    best = curve.best()
    for name, values in (("precision", curve.precision), ("recall", curve.recall), ("F1", curve.f1)):
        axes.plot(curve.scores, values, label=name)
    if best is not None:
        axes.axvline(best["threshold"], color="gray", linestyle=":", label=f"highest F1: {best['threshold']:.2f}")
    axes.set_title(f"all classes together, IoU {MATCH_IOU:.2f}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120, format="png")
    return figure


def draw_worst_images(
    directory: str | os.PathLike, dataset: Any, predictions: CocoMetric, count: int, threshold: float
) -> list[dict[str, Any]]:
    """Draws the `count` images with the most mistakes, truth on the left and detections on the right.

    Args:
        directory: is created; the images are called worst_01_image_{image id}.jpg and so on.
        dataset: rows as in `DetectionData.dataset`.
        predictions: of its images, with their truth.
        threshold: lowest score of detections that are shown and counted.

    Returns:
        One dict per image: image_id, missed, false, file.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    image_ids = list(dataset["image_id"])
    mistakes = [count_mistakes(predictions, image_id, threshold) for image_id in image_ids]
    worst = sorted(range(len(image_ids)), key=lambda i: (-sum(mistakes[i]), image_ids[i]))[:count]
    drawn = []
    for place, index in enumerate(worst, start=1):
        picture = _truth_beside_detections(dataset[index], predictions, threshold)
        file = directory / f"worst_{place:02d}_image_{short_name(str(image_ids[index]))}.jpg"
        picture.save(file, quality=90)
        drawn.append({"image_id": image_ids[index], **mistakes[index]._asdict(), "file": file.name})
    return drawn


def _truth_beside_detections(row: Mapping[str, Any], predictions: CocoMetric, threshold: float) -> Image.Image:
    image = open_row_image(dict(row))
    true = predictions.truth.of_image(row["image_id"])
    names = true.category_names
    true_labels = [
        names[c] + " (crowd)" * bool(crowd) for c, crowd in zip(true.box_categories, true.crowd, strict=True)
    ]
    boxes, scores, categories = predictions.detections(row["image_id"])
    shown = scores >= threshold
    labels = [names.get(int(category), str(category)) for category in categories[shown]]
    left = draw_detections(image, _corners(true.boxes), true_labels)
    right = draw_detections(image, _corners(boxes[shown]), labels, scores[shown])
    return contact_sheet([left, right], columns=2)


def _corners(boxes: np.ndarray) -> torch.Tensor:
    return box_convert(torch.from_numpy(boxes), "xywh", "xyxy")


def _per_cent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
