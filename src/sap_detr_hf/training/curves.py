# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""A picture of a run's metrics.jsonl: losses, rate and gradient norm, AP."""

import json
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

PANELS = {
    "loss": ["loss"],
    "loss parts of the last layer": ["loss_ce", "loss_bbox", "loss_giou", "loss_ce_obj"],
    "gradient norm and learning rate": ["gradient_norm", "learning_rate"],
    "validation": ["AP", "AP50", "AP75"],
}


def draw_curves(metrics: Path, picture: Path):
    """Draws `metrics` (a metrics.jsonl) over optimizer steps into the PNG `picture`; does nothing without lines."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        return
    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, names) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        for name in names:
            points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 60 else None)
        axes.set(title=title, xlabel="optimizer step")
        axes.set_yscale("linear" if title == "validation" else "log")
        if axes.lines:
            axes.legend()
    figure.savefig(picture, dpi=110)
