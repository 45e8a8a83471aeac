"""The targets of speed and memory that this project set itself, measured side by side in one run."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from sap_detr_hf.markdown_table import markdown_table

from .measure import Measurement, measure
from .tasks import Case


@dataclass(frozen=True)
class Target:
    """A case that must do better than another.

    Args:
        work: what is done, in words.
        ours, theirs: the two cases, measured in turn.
        speedup: least number of times as fast.
        memory: largest share of the other's peak memory; `None` where it is not asked for.
    """

    work: str
    ours: Case
    theirs: Case
    speedup: float
    memory: float | None = None


DAB_FORWARD = Case("forward", "dab-detr-r50")
DAB_TRAINING = Case("training", "dab-detr-r50", height=480, width=640, batch_size=2)
PICTURES: dict[str, Any] = {"height": 480, "width": 640, "batch_size": 8}
LOSS: dict[str, Any] = {"batch_size": 16}

TARGETS = (
    Target("forward, R50 optimised, float32", Case("forward", "r50:optimized"), DAB_FORWARD, 1.7),
    Target("the same, compiled", Case("forward", "r50:compiled"), DAB_FORWARD, 1.7),
    Target("forward, R50 optimised, bfloat16", Case("forward", "r50:optimized", "bfloat16"), DAB_FORWARD, 3.0),
    Target("the same, compiled", Case("forward", "r50:compiled", "bfloat16"), DAB_FORWARD, 3.0),
    Target(
        "forward, R50-DC5 optimised, float32",
        Case("forward", "r50-dc5:optimized"),
        Case("forward", "r50-dc5:released"),
        2.3,
        0.5,
    ),
    Target("training step, R50", replace(DAB_TRAINING, model="r50"), DAB_TRAINING, 1.3, 0.8),
    Target("matching and loss", Case("loss", "r50", **LOSS), Case("loss", "dab-detr-r50", **LOSS), 4.0),
    Target(
        "image processor, torchvision",
        Case("processor", "SapDetrImageProcessor", **PICTURES),
        Case("processor", "ConditionalDetrImageProcessor", **PICTURES),
        1.0,
    ),
    Target(
        "image processor, Pillow",
        Case("processor", "SapDetrImageProcessorPil", **PICTURES),
        Case("processor", "ConditionalDetrImageProcessorPil", **PICTURES),
        1.0,
    ),
)


def measure_targets(
    rounds: int, progress: Callable[[Iterable], Iterable] = iter, device: str = "cpu"
) -> list[list[Measurement]]:
    """Measure one group per target: the reference case first, then ours.

    Tasks without a model are noisier and get four times the rounds.
    """
    groups = []
    for target in progress(TARGETS):
        quick = target.ours.task in ("loss", "processor")
        cases = [replace(case, device=device) for case in (target.theirs, target.ours)]
        groups.append(measure(cases, rounds * (4 if quick else 1), memory=target.memory is not None))
    return groups


def targets_table(groups: list[list[Measurement]]) -> str:
    """Targets and what was measured, as a Markdown table."""
    rows = []
    for target, (theirs, ours) in zip(TARGETS, groups, strict=True):
        aims = [f"{target.speedup:g} x as fast"]
        reached = [f"{ours.speedup:.2f} x" + (" (missed)" if round(ours.speedup, 2) < target.speedup else "")]
        if target.memory is not None:
            aims.append(f"{target.memory:g} x the memory")
            share = ours.peak_mib / theirs.peak_mib if ours.peak_mib and theirs.peak_mib else math.nan
            reached.append(f"{share:.2f} x the memory" + (" (missed)" if round(share, 2) > target.memory else ""))
        seconds = f"{ours.seconds:.3g} / {theirs.seconds:.3g}"
        rows.append([target.work, theirs.model, ", ".join(aims), ", ".join(reached), seconds])
    return markdown_table(["work", "against", "target", "measured", "seconds, ours / theirs"], rows)
