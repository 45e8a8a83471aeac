"""A benchmark's results as JSON, Markdown table and plot."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from sap_detr_hf.markdown_table import markdown_table

from .measure import Measurement


def table(measurements: list[Measurement]) -> str:
    """The results as a Markdown table; columns that say nothing are left out."""
    reference = measurements[0].model
    columns = {
        "model": lambda m: m.model + "".join(f" {name}={value}" for name, value in m.overrides.items()),
        "dtype": lambda m: m.dtype,
        "images": lambda m: f"{m.batch_size} x {m.height} x {m.width}",
        "parameters, M": lambda m: _number(m.parameters, 1e6, 1),
        "multiply-adds, G": lambda m: _number(m.multiply_adds, 1e9, 1),
        "seconds": lambda m: f"{m.seconds:.3g}",
        "images a second": lambda m: f"{m.images_per_second:.3g}",
        f"times as fast as {reference}": lambda m: f"{m.speedup:.2f}",
        "peak memory, MiB": lambda m: _number(m.peak_mib, 1, 0),
        "share of matrix rate": lambda m: _number(m.rate_share, 0.01, 0, " %"),
    }
    cells = {name: [show(m) for m in measurements] for name, show in columns.items()}
    cells = {name: column for name, column in cells.items() if any(column)}
    return markdown_table(cells, zip(*cells.values(), strict=True))


def setting(environment: dict[str, Any]) -> str:
    """One line about what [`benchmarks.measure.environment`] found."""
    hardware = environment["hardware"]
    device = hardware.get("gpu") or f"{hardware['cpu']}, {hardware['threads']} threads"
    used = [f"{name} {number}" for name, number in environment["versions"].items()]
    used += [f"`{name}={value}`" for name, value in environment["memory_settings"].items()]
    return f"Measured on {device}, with {', '.join(used)}."


def write_report(
    folder: Path, name: str, groups: list[list[Measurement]], environment: dict[str, Any], command: str, text: str
) -> None:
    """Write `name`.json, `name`.md with `text` and, for models, `name`.png into a folder.

    Args:
        groups: measurements; each group was measured together.
        environment: of [`benchmarks.measure.environment`].
        command: how the results were made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results = [[asdict(measurement) for measurement in group] for group in groups]
    content = {"command": command, **environment, "groups": results}
    (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    (folder / f"{name}.md").write_text(text)
    if len({measurement.task for group in groups for measurement in group}) > 1:
        return  # seconds of different work share no axis
    figure = draw_growth(groups) if len(groups) > 1 else draw_bars(groups[0])
    figure.savefig(folder / f"{name}.png", dpi=110)
    plt.close(figure)


def read_report(path: Path) -> list[list[Measurement]]:
    """The groups of a written JSON file."""
    return [[Measurement(**fields) for fields in group] for group in json.loads(path.read_text())["groups"]]


def draw_bars(measurements: list[Measurement]) -> plt.Figure:
    """Seconds and peak memory of each model, one bar each, with the rounds' quartiles."""
    labels = [f"{m.model} {m.dtype if m.dtype != 'float32' else ''}" for m in measurements]
    with_memory = [m.peak_mib is not None for m in measurements]
    panels = 2 if all(with_memory) else 1
    figure, axes = plt.subplots(
        1, panels, figsize=(5.5 * panels, 0.45 * len(labels) + 1.2), sharey=True, squeeze=False, layout="constrained"
    )
    seconds = [m.seconds for m in measurements]
    spread = [[m.seconds - m.seconds_low for m in measurements], [m.seconds_high - m.seconds for m in measurements]]
    colors = ["tab:gray" if "detr-" in m.model and "sap" not in m.model else "tab:blue" for m in measurements]
    axes[0, 0].barh(labels, seconds, xerr=spread, color=colors)
    axes[0, 0].set_xlabel(f"seconds for {measurements[0].batch_size} image(s)")
    axes[0, 0].invert_yaxis()
    if panels == 2:
        axes[0, 1].barh(labels, [m.peak_mib for m in measurements], color=colors)
        axes[0, 1].set_xlabel("peak memory beside the weights, MiB")
    return figure


def draw_growth(groups: list[list[Measurement]]) -> plt.Figure:
    """Seconds and peak memory of each model against what grows from group to group: pixels or queries."""
    first, last = groups[0][0], groups[-1][0]
    if first.height * first.width != last.height * last.width:
        where, label = [group[0].height * group[0].width / 1e6 for group in groups], "megapixels"
    else:
        where, label = [group[0].overrides["num_queries"] for group in groups], "queries"
    quantities = {"seconds": "seconds", "peak_mib": "peak memory beside the weights, MiB"}
    if any(measurement.peak_mib is None for group in groups for measurement in group):
        del quantities["peak_mib"]
    figure, axes = plt.subplots(
        1, len(quantities), figsize=(5.5 * len(quantities), 4), squeeze=False, layout="constrained"
    )
    for axis, (field, quantity) in zip(axes[0], quantities.items(), strict=True):
        for index, measurement in enumerate(groups[0]):
            axis.plot(where, [getattr(group[index], field) for group in groups], marker="o", label=measurement.model)
        axis.set(xlabel=label, ylabel=quantity, ylim=(0, None))
        axis.grid(alpha=0.3)
        axis.legend()
    return figure


def _number(value: float | None, unit: float, digits: int, suffix: str = "") -> str:
    return "" if value is None else f"{value / unit:.{digits}f}{suffix}"
