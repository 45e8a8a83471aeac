"""Error types and confusion matrix of an evaluation as tables, a plot and JSON."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..markdown_table import markdown_table, table_text
from .coco_metric import CocoMetric
from .error_types import BACKGROUND_IOU, DETECTIONS, ERROR_TYPES, DetectionErrors, find_errors
from .mistakes import MATCH_IOU

TABLES, PLOT = ("mistakes.md", "mistakes.png")
MOST_CONFUSIONS = 20  # rows of the table; all are in the JSON
MOST_NAMED_CLASSES = 30  # more names would overlap in the plot
NO_OBJECT, MISSED_BOX = "no object", "missed"


def write_mistakes(folder: Path, predictions: CocoMetric, threshold: float) -> dict[str, Any]:
    """Write `TABLES` and `PLOT` into a folder.

    `threshold` is the score from which on a user would show detections.

    Returns:
        The numbers, for a JSON file: `AP50` and `dAP` (0 to 1) and `all_detections` of the `DETECTIONS` best of each
        image, `from_threshold` and `confusions` of those from the threshold on.
    """
    names = predictions.truth.category_names
    errors = find_errors(predictions)
    shown = errors.from_score(threshold)
    matrix = shown.confusion_matrix(sorted(names))
    mistakes = {
        "foreground_iou": MATCH_IOU,
        "background_iou": BACKGROUND_IOU,
        "detections_per_image": DETECTIONS,
        "AP50": errors.average_precision(),
        "dAP": errors.gains(),
        "all_detections": _counts(errors, names),
        "threshold": threshold,
        "from_threshold": _counts(shown, names),
        "confusions": _confusions(matrix, names),
    }
    (folder / TABLES).write_text(mistakes_tables(mistakes) + "\n", encoding="utf-8")
    plot_mistakes(folder / PLOT, mistakes, matrix, [names[key] for key in sorted(names)])
    return mistakes


def mistakes_tables(mistakes: Mapping[str, Any]) -> str:
    """What `write_mistakes` returns, in Markdown: error types, sizes, classes and the most frequent confusions."""
    every, shown, score = mistakes["all_detections"], mistakes["from_threshold"], f"{mistakes['threshold']:.2f}"
    kinds = [
        [kind, f"{100 * mistakes['dAP'][kind]:.1f}", shown["counts"][kind], every["counts"][kind]]
        for kind in ERROR_TYPES
    ]
    sizes = [[size, *(counts[kind] for kind in ERROR_TYPES)] for size, counts in shown["by_size"].items()]
    columns = ("boxes", "right", *ERROR_TYPES)
    classes = [[table_text(row["name"]), *(row[column] for column in columns)] for row in shown["by_class"]]
    confusions = [
        [table_text(row["true"] or NO_OBJECT), table_text(row["found"] or MISSED_BOX), row["count"]]
        for row in mistakes["confusions"]
        if row["true"] != row["found"]
    ]
    tables = {
        "Error types (TIDE)": markdown_table(
            ["error", "dAP50", f"from score {score} on", f"{DETECTIONS} best an image"], kinds
        ),
        f"Errors by size, from score {score} on": markdown_table(["size", *ERROR_TYPES], sizes),
        f"Errors by class, from score {score} on": markdown_table(["class", *columns], classes),
        f"Most frequent confusions, from score {score} on": markdown_table(
            ["true", "found", "count"], confusions[:MOST_CONFUSIONS]
        ),
    }
    return "\n\n".join(f"## {title}\n\n{table}" for title, table in tables.items())


def plot_mistakes(path: Path, mistakes: Mapping[str, Any], matrix: np.ndarray, names: Sequence[str]) -> Figure:
    """What AP would gain without each type of error, beside the confusion matrix, as a PNG; returns the figure.

    Args:
        path: the PNG to write.
        mistakes: as `write_mistakes` returns it.
        matrix: (classes + 1, classes + 1) as of `DetectionErrors.confusion_matrix`.
        names: of the classes, in the order of the matrix.
    """
    figure = Figure(figsize=(13, 6), layout="constrained")
    bars, cells = figure.subplots(1, 2, width_ratios=(2, 3))
    gains = [100 * mistakes["dAP"][kind] for kind in ERROR_TYPES]
    bars.bar_label(bars.barh(ERROR_TYPES, gains), fmt="%.1f", padding=2)
    bars.invert_yaxis()
    bars.set(xlabel="dAP50: points gained if mended", title=f"error types, AP50 {100 * mistakes['AP50']:.1f}")
    bars.margins(x=0.12)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    figure.colorbar(cells.imshow(shares, cmap="Blues", vmin=0, vmax=1), ax=cells, label="share of the row")
    title = f"detections from score {mistakes['threshold']:.2f} on, IoU {MATCH_IOU:.2f}"
    cells.set(xlabel="found", ylabel="true", title=title)
    if len(names) <= MOST_NAMED_CLASSES:
        places = range(len(names) + 1)
        cells.set_xticks(places, [*names, MISSED_BOX], rotation=90)
        cells.set_yticks(places, [*names, NO_OBJECT])
        for row, column in zip(*np.nonzero(matrix), strict=True):
            color = "white" if shares[row, column] > 0.5 else "black"
            size = 9 if len(names) <= MOST_NAMED_CLASSES // 2 else 6
            cells.text(column, row, str(matrix[row, column]), ha="center", va="center", color=color, fontsize=size)
    figure.savefig(path, dpi=120, format="png")
    return figure


def _counts(errors: DetectionErrors, names: Mapping[int, str]) -> dict[str, Any]:
    return {"counts": errors.counts(), "by_size": errors.counts_by_size(), "by_class": errors.counts_by_class(names)}


def _confusions(matrix: np.ndarray, names: Mapping[int, str]) -> list[dict[str, Any]]:
    """The matrix without its zeros, the largest numbers first; None for no object and for a missed box."""
    labels = [*(names[key] for key in sorted(names)), None]
    cells = [(int(matrix[row, column]), row, column) for row, column in zip(*np.nonzero(matrix), strict=True)]
    ordered = sorted(cells, key=lambda cell: (-cell[0], *cell[1:]))
    return [{"true": labels[row], "found": labels[column], "count": count} for count, row, column in ordered]
