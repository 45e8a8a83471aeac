# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Table and plot of a comparison: AP over epochs and over seconds, mean and range over the seeds."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from sap_detr_hf.markdown_table import markdown_table

from .models import DETECTORS
from .runs import Run, finished_runs
from .speed import SPEED_FILE

SHOWN = ("AP", "AP50", "AP_small", "AP_medium")
Trained = dict[tuple[str, int], list[dict[str, Any]]]
"""The finished runs of a detector with a number of epochs, all at its best rate."""
Speed = dict[str, dict[str, float]]
"""What [`benchmarks.comparison.speed.measure_speed`] measured of each detector."""


def write_report(results: Path) -> None:
    """Write `results.md` and `curves.png` from the runs and `speed.json` of a data set's folder."""
    runs = finished_runs(results)
    trained, speed = full_runs(runs), measured_speed(results)
    parts = [trained_on(runs), report_text(trained, speed), searches_table(runs)]
    (results / "results.md").write_text("\n\n".join(filter(None, parts)) + "\n", encoding="utf-8")
    if trained:
        draw_curves(trained, speed, results / "curves.png")


def trained_on(runs: dict[Run, dict[str, Any]]) -> str | None:
    """One line about hardware and versions."""
    found = {
        f"{run['hardware']}, {run['threads']} thread(s) a training, torch "
        f"{run['versions']['torch']}, transformers {run['versions']['transformers']}"
        for run in runs.values()
    }
    return f"Trained on {'; '.join(sorted(found))}." if found else None


def measured_speed(results: Path) -> dict[str, dict[str, float]]:
    """Seconds of a training step and of a forward pass, and sizes, by detector, where they were measured."""
    if not (results / SPEED_FILE).exists():
        return {}
    return json.loads((results / SPEED_FILE).read_text(encoding="utf-8"))["detectors"]


def full_runs(runs: dict[Run, dict[str, Any]]) -> Trained:
    """The runs in full length, by detector and epochs: those of the only rate, or of the one that has several seeds.

    A search for the rate has one seed and fewer epochs than the full runs. Of two rates with as many seeds, the better.
    """
    groups: dict[tuple[str, int], dict[float, list[dict[str, Any]]]] = {}
    for run, result in runs.items():
        groups.setdefault((run.detector, run.epochs), {}).setdefault(run.rate, []).append(result)
    kept = {}
    for key, rates in groups.items():
        most = max(rates.values(), key=lambda runs: (len(runs), statistics.mean(final(run)["AP"] for run in runs)))
        if len(rates) == 1 or len(most) > 1:
            kept[key] = most
    order = list(DETECTORS)
    return dict(sorted(kept.items(), key=lambda item: (order.index(item[0][0]), item[0][1])))


def report_text(trained: Trained, speed: Speed) -> str:
    """AP and costs of each detector, and what each needs to reach the others' final AP."""
    if not trained:
        return "No run in full length has ended yet."
    tables = [ap_table(trained), costs_table(trained, speed)]
    usual = statistics.mode(epochs for _, epochs in trained)
    for length in sorted({epochs for _, epochs in trained if epochs >= usual}):
        for maps, on_pyramid in (("one feature map", False), ("a pyramid of feature maps", True)):
            alike = {
                name: runs
                for (name, epochs), runs in trained.items()
                if DETECTORS[name].pyramid == on_pyramid and epochs == length
            }
            tables.append(reached_table(alike, speed, maps))
    return "\n\n".join(filter(None, tables))


def ap_table(trained: Trained) -> str:
    """Final AP of each detector, and AP after a third of its epochs."""
    rows = []
    for (name, epochs), runs in trained.items():
        early = [early_ap(run) for run in runs]
        aps = [mean_and_range([final(run)[key] for run in runs]) for key in SHOWN]
        rows.append([DETECTORS[name].title, epochs, f"{runs[0]['rate']:g}", len(runs), mean_and_range(early), *aps])
    return markdown_table(["detector", "epochs", "rate", "seeds", "AP after a third", *SHOWN], rows)


def costs_table(trained: Trained, speed: Speed) -> str | None:
    """Seconds, memory and size of each detector, or `None` where no speed was measured."""
    rows = []
    for (name, epochs), runs in trained.items():
        seconds = seconds_of_epoch(name, runs, speed)
        if seconds is None:
            continue
        cost = speed[name]
        memory = max(run["memory_gib"] or 0 for run in runs)
        size = [
            f"{cost[key] / unit:.2f}" for key, unit in (("parameters_outside_backbone", 1e6), ("multiply_adds", 1e9))
        ]
        times = [f"{seconds:.1f}", f"{seconds * epochs:.0f}", f"{cost['seconds_per_forward']:.3f}"]
        rows.append([DETECTORS[name].title, epochs, *times, f"{memory:.2f}", *size])
    titles = ["detector", "epochs", "s an epoch", "s in all", "s a forward pass", "peak GiB"]
    return markdown_table([*titles, "M parameters", "G multiply-adds"], rows) if rows else None


def searches_table(runs: dict[Run, dict[str, Any]]) -> str | None:
    """AP and AP50, with the first seed, after the short runs that a rate is chosen by; `None` without any."""
    tried: dict[tuple[str, int], dict[float, dict[str, Any]]] = {}
    for run, result in runs.items():
        if run.seed == min(other.seed for other in runs):
            tried.setdefault((run.detector, run.epochs), {})[run.rate] = result["curve"][-1]
    searches = {key: points for key, points in tried.items() if len(points) > 1}
    if not searches:
        return None
    rates = sorted({rate for points in searches.values() for rate in points})
    rows = []
    for (name, epochs), points in sorted(searches.items(), key=lambda item: list(DETECTORS).index(item[0][0])):
        aps = [points.get(rate) for rate in rates]
        cells = [f"{100 * point['AP']:.1f} / {100 * point['AP50']:.1f}" if point else "-" for point in aps]
        rows.append([DETECTORS[name].title, epochs, *cells])
    titles = ["detector", "epochs", *(f"rate {rate:g}" for rate in rates)]
    return "The search for the rate, one seed, AP / AP50 in per cent:\n\n" + markdown_table(titles, rows)


def reached_table(runs: dict[str, list[dict[str, Any]]], speed: Speed, maps: str) -> str | None:
    """In how many epochs, and seconds, the mean AP of each detector (row) reaches the final one of each (column).

    Args:
        runs: of one length, by detector.
        speed: of the detectors.
        maps: what the detectors see, for the title.
    """
    if len(runs) < 2:
        return None
    curves = {name: mean_curve(of) for name, of in runs.items()}
    rows = []
    for name in runs:
        cells = []
        for target in runs:
            epoch = first_epoch(curves[name], curves[target][-1][1])
            cells.append("-" if epoch is None else reached(epoch, name, target, runs, speed))
        rows.append([DETECTORS[name].title, *cells])
    epochs = next(iter(runs.values()))[0]["epochs"]
    return (
        f"Detectors on {maps}, trained for {epochs} epochs: after how many epochs the mean AP of a row's detector "
        "reaches the final mean AP of a column's, and how many times as fast that is as the column's own training, in "
        "epochs and in seconds:\n\n" + markdown_table(["", *(DETECTORS[name].title for name in runs)], rows)
    )


def reached(epoch: float, name: str, target: str, runs: dict[str, list[dict[str, Any]]], speed: Speed) -> str:
    """A cell of [`reached_table`]."""
    whole = runs[target][0]["curve"][-1]["epoch"]
    text = f"{epoch:.3g}: {whole / epoch:.1f} x"
    own, other = (seconds_of_epoch(each, runs[each], speed) for each in (name, target))
    return text if own is None or other is None else f"{text}, {whole * other / (epoch * own):.1f} x"


def seconds_of_epoch(name: str, runs: list[dict[str, Any]], speed: Speed) -> float | None:
    """Seconds of training an epoch, where a step was measured."""
    return speed[name]["seconds_per_step"] * steps_of_epoch(runs[0]) if name in speed else None


def early_ap(run: dict[str, Any]) -> float | None:
    """AP after a third of the epochs."""
    whole = run["curve"][-1]["epoch"]
    return min(run["curve"], key=lambda point: abs(point["epoch"] - whole / 3))["AP"]


def final(run: dict[str, Any]) -> dict[str, Any]:
    """The last measurement of a run; of runs that learn their few pictures by heart, the best."""
    if run["settings"]["evaluation_steps"]:
        return max(run["curve"], key=lambda point: point["AP50"] or 0.0)
    return run["curve"][-1]


def steps_of_epoch(run: dict[str, Any]) -> float:
    """Steps of an epoch."""
    last = run["curve"][-1]
    return last["step"] / last["epoch"]


def mean_curve(runs: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    """(epoch, mean AP over the seeds) of each measurement."""
    return [
        (points[0]["epoch"], statistics.mean(point["AP"] or 0.0 for point in points))
        for points in zip(*(run["curve"] for run in runs), strict=False)
    ]


def first_epoch(curve: Sequence[tuple[float, float]], ap: float) -> float | None:
    """The first measured epoch with at least this AP."""
    return next((epoch for epoch, value in curve if value >= ap > 0), None)


def mean_and_range(values: Sequence[float | None]) -> str:
    """Shares as per cent: `mean (lowest to highest)`, of a single run its value."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return "-"
    spread = f" ({min(known):.1f} to {max(known):.1f})" if len(known) > 1 else ""
    return f"{statistics.mean(known):.1f}{spread}"


def draw_curves(trained: Trained, speed: Speed, picture: Path) -> None:
    """Draw AP over epochs and, where the seconds are known, over seconds; bands from lowest to highest seed."""
    figure = Figure(figsize=(13, 5), layout="constrained")
    by_epoch, by_second = figure.subplots(1, 2)
    for (name, epochs), runs in trained.items():
        points = list(zip(*(run["curve"] for run in runs), strict=False))
        values = [[100 * (point["AP"] or 0.0) for point in same] for same in points]
        means, lows, highs = ([pick(of) for of in values] for pick in (statistics.mean, min, max))
        x = [same[0]["epoch"] for same in points]
        scales = [(by_epoch, 1.0)]
        seconds = seconds_of_epoch(name, runs, speed)
        if seconds is not None:
            scales.append((by_second, seconds))
        for axes, scale in scales:
            scaled = [value * scale for value in x]
            (line,) = axes.plot(scaled, means, marker=".", label=f"{DETECTORS[name].title}, {epochs} epochs")
            axes.fill_between(scaled, lows, highs, color=line.get_color(), alpha=0.15)
    for axes, what in ((by_epoch, "epochs"), (by_second, "seconds of training")):
        axes.set(title=f"AP in per cent over {what}", xlabel=what)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    by_epoch.legend(fontsize="small")
    figure.savefig(picture, dpi=110)
