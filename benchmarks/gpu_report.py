"""The summary of [`benchmarks.measure_gpu`]: steps, targets met or missed, tables, and the Gaussian's best form."""

from dataclasses import fields
from typing import Any

from sap_detr_hf.markdown_table import markdown_table

from .measure import Measurement
from .report import setting, table

FORWARD_TARGET, TRAINING_TARGET = 1.7, 1.3  # times DAB-DETR's images a second
WAITS = {"forward": 0, "training": 1}  # how often each may wait for the GPU: matching's one transfer
WORTH = 1.05  # a form that is less than so many times as fast as the bias is not worth its code
GRADIENT_ERROR = 2.0  # times the bias's error that a form's gradients may have


def report(results: list[dict[str, Any]]) -> str:
    """The steps' files (see [`benchmarks.measure_gpu.run_in_process`]) -> Markdown."""
    found = {each["step"]: each["result"] for each in results}
    measured = next((each for each in results if "hardware" in each), {})
    steps = [[each["step"], each["status"], f"{each['seconds']:.0f}", _finding(each)] for each in results]
    parts = [setting(measured)] if measured else []
    dry_run = bool(measured) and measured["hardware"]["device"] == "cpu"
    parts += ["A dry run in toy size: its numbers mean nothing."] if dry_run else []
    parts += [markdown_table(["step", "status", "seconds", "finding"], steps)]
    parts += [] if dry_run else [markdown_table(["target", "measured", "verdict"], targets(found))]
    for step in ("forward", "training", "kernel"):
        parts += _tables(f"{step}", found.get(step, {}).get("rows", []))
    for task in ("forward", "training"):
        parts += _tables(f"gaussian, {task}", found.get("gaussian", {}).get(task, []))
    return "\n\n".join(parts) + "\n"


def targets(found: dict[str, dict[str, Any]]) -> list[tuple[str, str, str]]:
    """What was aimed at, what was measured, and "met", "missed" or "not measured"; from the steps' results."""
    waits = {
        f"{model}, {task}": len(places)
        for model, tasks in found.get("synchronization", {}).items()
        for task, places in tasks.items()
    }
    too_many = {name: count for name, count in waits.items() if count > WAITS[name.rpartition(", ")[2]]}
    told = "; ".join(f"{name}: {count}" for name, count in (too_many or waits).items())
    verdict = ("missed" if too_many else "met") if waits else "not measured"
    return [
        ("no synchronization but matching's one transfer", told, verdict),
        _faster("forward, R50 compiled, bfloat16", found.get("forward", {}), "r50:compiled", FORWARD_TARGET),
        _faster("training step, R50, bfloat16", found.get("training", {}), "r50", TRAINING_TARGET),
    ]


def _faster(work: str, result: dict[str, Any], model: str, target: float) -> tuple[str, str, str]:
    """Against DAB-DETR in its faster form, be it compiled or not."""
    speeds = {row["model"]: row["images_per_second"] for row in result.get("rows", []) if "error" not in row}
    theirs = {name: speed for name, speed in speeds.items() if name.startswith("dab-detr")}
    aim = f"{work}: {target:g} x DAB-DETR's images a second"
    if model not in speeds or not theirs:
        return aim, "", "not measured"
    fastest = max(theirs, key=lambda name: theirs[name])
    ratio = speeds[model] / theirs[fastest]
    images = f"{speeds[model]:.1f} / {theirs[fastest]:.1f}"
    return aim, f"{ratio:.2f} x {fastest} ({images})", "met" if ratio >= target else "missed"


def best_form(result: dict[str, Any]) -> str:
    """The form of the Gaussian to keep: the fastest in forward pass and training step together, if it is worth it.

    Args:
        result: of the step `gaussian`: rows of `forward` and `training`, `gradient_errors` by form.
    """
    if "gradient_errors" not in result:
        return "not measured"
    seconds: dict[str, list[float]] = {}
    for row in (*result["forward"], *result["training"]):
        if "error" not in row:
            form = row["model"].partition(":")[2] or "bias"
            seconds.setdefault(form, []).append(row["seconds"] / row["batch_size"])
    errors = {form: max(each) for form, each in result["gradient_errors"].items()}
    right = [form for form in errors if errors[form] <= GRADIENT_ERROR * errors["bias"] and len(seconds[form]) == 2]
    if "bias" not in right:
        return "not measured"
    fastest = min(right, key=lambda form: sum(seconds[form]))
    gain = sum(seconds["bias"]) / sum(seconds[fastest])
    told = ", ".join(f"{form} {sum(each) * 1e3:.2f} ms an image" for form, each in seconds.items() if len(each) == 2)
    told += "; gradients off by " + ", ".join(f"{form} {error:.1%}" for form, error in errors.items())
    return f"keep {fastest if gain >= WORTH else 'bias'} ({told})"


def _finding(step: dict[str, Any]) -> str:
    """One cell about a step's result."""
    result, name = step["result"], step["step"]
    if "not_measured" in result:
        return f"not measured: {result['not_measured']}"
    if not result:
        return step.get("log", [""])[-1] if step.get("log") else ""
    if name == "tests":
        failed = f", failed: {', '.join(result['failed'])}" if result["failed"] else ""
        return f"{result['passed']} passed, {result['skipped']} skipped{failed}"
    if name == "demo":
        return _training_finding(result)
    if name == "synchronization":
        places = {place for tasks in result.values() for found in tasks.values() for place in found}
        return "waits in " + "; ".join(sorted(places)) if places else "never waits"
    if name == "gaussian":
        return best_form(result)
    return "; ".join(f"{row['model']}: {row['error']}" for row in result["rows"] if "error" in row)


def _training_finding(result: dict[str, Any]) -> str:
    fell = "fell" if result["last_loss"] < result["first_loss"] else "did not fall"
    told = f"loss {fell} from {result['first_loss']:.2f} to {result['last_loss']:.2f}, AP {_numbers(result['AP'])}"
    if "resumed_AP" in result:
        told += f"; resumed from {result['resumed_from']}: AP {_numbers(result['resumed_AP'])}, last step's loss "
        told += f"{result['resumed_last_step_loss']:.2f}, uninterrupted {result['last_step_loss']:.2f}"
    return f"{told}; {result['nccl'] or 'without NCCL'}"


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values) or "none"


def _tables(title: str, rows: list[dict[str, Any]]) -> list[str]:
    names = {field.name for field in fields(Measurement)}
    # Overrides are the same in all, and of toys alone.
    measurements = [Measurement(**{**row, "overrides": {}}) for row in rows if names >= row.keys()]
    return [f"## {title.capitalize()}", table(measurements)] if measurements else []
