"""The demo: embedded data, training, COCO AP, the pipeline, and images with the detections."""

import json
import shutil
import time
from pathlib import Path

import torch
from transformers import pipeline

from sap_detr_cli.recipes import read_recipe
from sap_detr_cli.settings.evaluate import EvaluationSettings
from sap_detr_cli.settings.train import TrainingSettings

from ..drawing import contact_sheet, draw_detections
from ..evaluation.report import evaluate_model
from ..inference.detector import detect_with_points
from ..model.image_files import open_image
from ..training.loop import train
from .digits import make_digits

PICTURES = 12
THRESHOLD = 0.3
DRAWN_SIDE = 384  # pixels: small images are enlarged before names cover their digits


def run_demo(recipe: str | Path, output_dir: Path, train_images: int, val_images: int, size: int, **overrides) -> dict:
    """Make the digits, train on them, measure AP, detect digits in validation images and draw them.

    Args:
        recipe: settings of the training: name of a recipe, or a file.
        output_dir: receives `digits/`, `model/`, `evaluation/`, `pictures/` and `demo.json`; what an earlier demo left
            there is replaced.
        size: side of the square images in pixels.
        overrides: training settings that replace the recipe's.

    Returns:
        The contents of `demo.json`: AP, AP50, seconds of each part.

    Raises:
        InterruptedError: a signal stopped the training.
    """
    seconds, started = {}, time.monotonic()

    def lap(part: str) -> None:
        nonlocal started
        seconds[part] = round(time.monotonic() - started, 1)
        started = time.monotonic()

    for name in ("digits", "model", "evaluation", "pictures"):
        shutil.rmtree(output_dir / name, ignore_errors=True)
    make_digits(output_dir / "digits", train=train_images, val=val_images, size=(size, size))
    lap("data")
    settings = {**read_recipe(recipe), "data": str(output_dir / "digits"), "output_dir": str(output_dir / "model")}
    outcome = train(TrainingSettings(**{**settings, **overrides}))
    if outcome["status"] == "interrupted":
        raise InterruptedError("The training was stopped by a signal; run the demo again to start over.")
    lap("training")
    evaluation = EvaluationSettings(
        model=str(output_dir / "model"), data=str(output_dir / "digits"), output=str(output_dir / "evaluation")
    )
    metrics = evaluate_model(evaluation, command="make demo")["metrics"]
    lap("evaluation")
    draw_pictures(output_dir / "model", output_dir / "digits" / "images" / "val", output_dir / "pictures")
    lap("pictures")
    result = {"AP": metrics["AP"], "AP50": metrics["AP50"], "seconds": seconds}
    (output_dir / "demo.json").write_text(json.dumps(result, indent=2))
    return result


def draw_pictures(model_dir: Path, image_dir: Path, output_dir: Path) -> None:
    """Run the object-detection pipeline on the first images of a folder; draw boxes, names and salient points."""
    detector = pipeline("object-detection", model=str(model_dir))
    output_dir.mkdir(parents=True)
    pictures, detections = [], {}
    for path in sorted(image_dir.iterdir())[:PICTURES]:
        image = open_image(path)
        found = detector(image, threshold=THRESHOLD)
        detections[path.name] = found
        points = detect_with_points(detector.model, detector.image_processor, image, THRESHOLD).points
        names, scores = [detection["label"] for detection in found], [detection["score"] for detection in found]
        boxes = torch.tensor([list(detection["box"].values()) for detection in found]).reshape(-1, 4)
        pictures.append(draw_detections(image, boxes, names, scores, points, least_side=DRAWN_SIDE))
        pictures[-1].save(output_dir / f"{path.stem}.png")
    contact_sheet(pictures, columns=3).save(output_dir / "all.png")
    (output_dir / "detections.json").write_text(json.dumps(detections, indent=2))
