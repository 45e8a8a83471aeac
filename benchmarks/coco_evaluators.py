"""CPU time of COCO AP by pycocotools and by faster-coco-eval on random detections; fails where a number differs."""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

from sap_detr_cli.main import fail
from sap_detr_hf.environment import hardware_name, software_versions
from sap_detr_hf.evaluation.coco_evaluator import EVALUATORS, FASTER, installed_evaluator
from sap_detr_hf.evaluation.coco_metric import CocoMetric, GroundTruth
from sap_detr_hf.evaluation.report import write_results


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 1 where the evaluators disagree, 2 where one is not installed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--boxes", type=int, default=7, help="true boxes an image, on average")
    parser.add_argument("--detections", type=int, default=100, help="an image")
    parser.add_argument("--json", type=Path, help="also write the results here")
    args = parser.parse_args(argv)
    if installed_evaluator() != FASTER:
        return fail('faster-coco-eval is not installed: pip install ".[fast-eval]"', 2)
    truth, detections = random_detections(args.images, args.classes, args.boxes, args.detections)
    seconds, metrics = {}, []
    for evaluator in EVALUATORS:
        metric = CocoMetric(truth, evaluator)
        for image_id, found in enumerate(detections):
            metric.add(image_id, *found)
        started = time.process_time()
        metrics.append(metric.compute().metrics)
        seconds[evaluator] = time.process_time() - started
        print(f"{evaluator}: {seconds[evaluator]:.1f} s of CPU time, AP {metrics[-1]['AP']!r}")
    if metrics[0] != metrics[1]:
        return fail("the numbers differ", 1)
    if args.json is not None:
        setting = {name: value for name, value in vars(args).items() if name != "json"}
        machine = {"hardware": hardware_name(torch.device("cpu")), "versions": software_versions(FASTER)}
        write_results(args.json, {"setting": setting, **machine, "seconds": seconds, "metrics": metrics[0]})
    return 0


def random_detections(images: int, classes: int, boxes: int, detections: int) -> tuple:
    """A `GroundTruth` with crowds, and for each image boxes (n, 4), scores (n,) and category ids (n,)."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(boxes, images)
    total = counts.sum()
    true = np.concatenate([rng.uniform(0, 400, (total, 2)), rng.lognormal(4, 1, (total, 2))], axis=1)
    names = {number: f"class {number}" for number in range(1, classes + 1)}
    truth = GroundTruth(
        image_ids=np.arange(images),
        category_names=names,
        box_images=np.repeat(np.arange(images), counts),
        box_categories=rng.integers(1, classes + 1, total),
        boxes=true,
        areas=0.7 * true[:, 2] * true[:, 3],
        crowd=rng.random(total) < 0.01,
    )
    found = []
    for rows in np.split(np.arange(total), np.cumsum(counts)[:-1]):
        near = rng.choice(rows, detections // 2) if len(rows) else rows
        moved = true[near] + rng.normal(0, 0.06, (len(near), 4)) * true[near][:, [2, 3, 2, 3]]
        far = rng.uniform(1, 300, (detections - len(near), 4))
        scores = np.concatenate([rng.beta(2, 2, len(near)), rng.beta(1, 4, len(far))])
        categories = np.concatenate([truth.box_categories[near], rng.integers(1, classes + 1, len(far))])
        found.append((np.concatenate([np.abs(moved), far]), scores, categories))
    return truth, found


if __name__ == "__main__":
    sys.exit(main())
