"""COCO AP, size and CPU latency of exported files beside the torch model, in one run."""

import argparse
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sap_detr_cli.main import fail
from sap_detr_hf.data.checks import check_validation
from sap_detr_hf.data.classes import check_categories
from sap_detr_hf.data.dataset import DetectionData, load_detection_data
from sap_detr_hf.environment import hardware_name, software_versions
from sap_detr_hf.evaluation.coco_metric import METRIC_NAMES
from sap_detr_hf.evaluation.evaluate import evaluate_detections, ground_truth
from sap_detr_hf.evaluation.report import write_results
from sap_detr_hf.export.exported import ExportedModel
from sap_detr_hf.inference.detector import prepared_size
from sap_detr_hf.inference.exports import exported_file
from sap_detr_hf.markdown_table import markdown_table
from sap_detr_hf.weights.pretrained import load_detector

from .measure import paired_seconds
from .models import image_batch

SHOWN_METRICS = ("AP", "AP50", "AP75")


def evaluate_exported(
    names: Sequence[str],
    data: str | None = None,
    split: str = "val",
    size: tuple[int, int] | None = None,
    rounds: int = 20,
) -> dict[str, Any]:
    """AP on a data set, and latency with one image, of exported files and model directories on the CPU.

    Args:
        names: files and directories, a directory may be followed by `:optimized`; the first is what the others' latency
            is compared with.
        data: as in `load_detection_data`; without it only latency is measured.
        split: of the data.
        size: height and width of the image for the latency; by default that of the data's first image.
        rounds: in each, every model predicts the image once, in turn.

    Returns:
        For a JSON file, `setting`, `hardware`, `versions` and `models`, a list of dicts: `name` without its path,
        `megabytes` of the file or of the directory's weights, `seconds` (median of one image), `speedup` (median over
        the rounds of the first model's time / this model's) and `metrics` (the 12 COCO numbers in 0..1, or None).

    Raises:
        OSError, ValueError: a model or data set that cannot be used, or neither data nor size.
    """
    if data is None and size is None:
        raise ValueError("Without data the image size must be given: --size HEIGHT WIDTH")
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}, but must be at least 1")
    models = [_load(name) for name in names]
    megabytes = [round(_bytes(name, model) / 1e6, 2) for name, (model, _) in zip(names, models, strict=True)]
    loaded = None if data is None else load_detection_data(data, split)
    if loaded is not None:
        check_validation(loaded)
        size = size or prepared_size(models[0][1], loaded.dataset[0]["height"], loaded.dataset[0]["width"])
    assert size is not None
    metrics = [None if loaded is None else _metrics(*model, loaded) for model in models]
    inputs = image_batch(*size, 1)
    with torch.no_grad():
        seconds = paired_seconds([partial(model, **inputs) for model, _ in models], rounds)
    results = [
        {
            "name": Path(name).name,
            "megabytes": size_of_file,
            "seconds": statistics.median(times),
            "speedup": statistics.median(a / b for a, b in zip(seconds[0], times, strict=True)),
            "metrics": found,
        }
        for name, size_of_file, times, found in zip(names, megabytes, seconds, metrics, strict=True)
    ]
    images = None if loaded is None else len(loaded.dataset)
    setting = {"images": images, "height": size[0], "width": size[1], "batch_size": 1, "rounds": rounds}
    return {
        "setting": {**setting, "threads": torch.get_num_threads()},
        "hardware": hardware_name(torch.device("cpu")),
        "versions": software_versions("onnxruntime", "openvino", "nncf"),
        "models": results,
    }


def result_table(models: Sequence[dict[str, Any]]) -> str:
    """The `models` of `evaluate_exported` as a Markdown table, AP in per cent."""
    rows = []
    for model in models:
        cost = [f"{model['megabytes']:.1f}", f"{1000 * model['seconds']:.1f}", f"{model['speedup']:.2f}"]
        found = ["-" if not model["metrics"] else f"{100 * model['metrics'][name]:.1f}" for name in SHOWN_METRICS]
        rows.append([model["name"], *cost, *found])
    return markdown_table(["model", "MB", "ms an image", "times as fast", *SHOWN_METRICS], rows)


def _load(name: str) -> tuple[nn.Module, Any]:
    if exported_file(name) is not None:
        exported = ExportedModel(name, trust_pt2=True)
        return exported, exported.image_processor
    directory, _, form = name.partition(":")
    if form not in ("", "optimized"):
        raise ValueError(f"{name}: the only form of a saved model here is :optimized")
    model, image_processor = load_detector(directory, "cpu")
    if form:
        model.optimize_for_inference()
    return model, image_processor


def _metrics(model: nn.Module, image_processor: Any, data: DetectionData) -> dict[str, float]:
    check_categories(data, model.config)
    evaluation = evaluate_detections(model, data.dataset, image_processor, ground_truth(data), progress=False)
    return {name: evaluation.metrics[name] for name in METRIC_NAMES}


def _bytes(name: str, model: nn.Module) -> int:
    if exported_file(name) is not None:
        files = [Path(name)] + ([Path(name).with_suffix(".bin")] if name.endswith(".xml") else [])
        return sum(file.stat().st_size for file in files)
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 2 for a model or data set that cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("models", nargs="+", help="model directories, exported files; latency is compared to the first")
    parser.add_argument("--data", help="data set for AP, as evaluate takes it; without it only latency is measured")
    parser.add_argument("--split", default="val", help="split of the data")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of the image for the latency")
    parser.add_argument("--rounds", type=int, default=20, help="in each, every model predicts one image; medians count")
    parser.add_argument("--note", help="what disturbed the measurement, for the readers of the results")
    parser.add_argument("--json", type=Path, help="also write the results here")
    args = parser.parse_args(argv)
    try:
        size = None if args.size is None else tuple(args.size)
        results = evaluate_exported(args.models, args.data, args.split, size, args.rounds)
        results["setting"]["note"] = args.note
        if args.json is not None:
            write_results(args.json, results)
    except (ImportError, OSError, ValueError) as error:
        return fail(error, 2)
    print(result_table(results["models"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
