"""Latency and peak memory of the forward pass, beside transformers' DAB-DETR, paired in one run."""

import json
import multiprocessing
import platform
import resource
import statistics
import time
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn
from transformers import DabDetrConfig, DabDetrForObjectDetection

from .configuration_sap_detr import PUBLISHED_VARIANTS, SapDetrConfig
from .modeling_sap_detr import SapDetrForObjectDetection

COMPARED = ("dab-detr-r50", *PUBLISHED_VARIANTS)


@dataclass
class ForwardCost:
    """What one model's forward pass costs.

    Args:
        model: one of `COMPARED`.
        parameters: number of parameters.
        seconds: median over the rounds.
        speedup: median over the rounds of DAB-DETR's seconds / this model's seconds in the same round.
        peak_mib: largest resident memory during the pass above what the loaded model takes, in a process of its own.
    """

    model: str
    parameters: int
    seconds: float
    speedup: float
    peak_mib: float


def build_model(name: str) -> nn.Module:
    """A model with random weights, in evaluation mode.

    Raises:
        ValueError: no such model.
    """
    if name == "dab-detr-r50":
        backbone = {"model_type": "resnet", "out_features": ["stage4"]}
        fields = {"backbone_config": backbone, "use_timm_backbone": False, "backbone": None, "num_labels": 91}
        return DabDetrForObjectDetection(DabDetrConfig.from_dict(fields)).eval()
    return SapDetrForObjectDetection(SapDetrConfig.from_variant(name)).eval()


@torch.no_grad()
def measure_forward(names: list[str], height: int, width: int, batch_size: int, rounds: int) -> list[ForwardCost]:
    """Time the models in turn, round after round, so that a drift of the machine hits all alike.

    Args:
        names: of `COMPARED`; DAB-DETR is added where it is missing.
        height, width: of the images in pixels.
        batch_size: images per pass.
        rounds: counted rounds, after one that is not.
    """
    names = ["dab-detr-r50", *(name for name in names if name != "dab-detr-r50")]
    models = {name: build_model(name) for name in names}
    pixels, mask = _inputs(height, width, batch_size)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        for name, model in models.items():
            started = time.perf_counter()
            model(pixel_values=pixels, pixel_mask=mask)
            if number:
                seconds[name].append(time.perf_counter() - started)
    return [
        ForwardCost(
            model=name,
            parameters=sum(parameter.numel() for parameter in models[name].parameters()),
            seconds=statistics.median(seconds[name]),
            speedup=statistics.median(a / b for a, b in zip(seconds["dab-detr-r50"], seconds[name], strict=True)),
            peak_mib=_in_fresh_process(partial(peak_memory, name, height, width, batch_size)),
        )
        for name in names
    ]


def peak_memory(name: str, height: int, width: int, batch_size: int) -> float:
    """MiB that a forward pass adds to the process's peak of resident memory; call it in a fresh process."""
    model = build_model(name)
    inputs = _inputs(height, width, batch_size)
    with torch.no_grad():
        model(*(tensor[..., :64, :64] for tensor in inputs))  # what libraries allocate once
        before = _resident_mib()
        model(*inputs)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before


def table(costs: list[ForwardCost]) -> str:
    """The results as a Markdown table."""
    rows = [
        f"| {c.model} | {c.parameters / 1e6:.1f} | {c.seconds:.2f} | {c.speedup:.2f} | {c.peak_mib:.0f} |"
        for c in costs
    ]
    header = "| model | parameters, M | seconds | times as fast as DAB-DETR | peak memory, MiB |\n|---|---|---|---|---|"
    return "\n".join([header, *rows])


def write_results(path: Path, costs: list[ForwardCost], height: int, width: int, batch_size: int) -> None:
    """The results as JSON, with setting, hardware and versions."""
    content = {
        "setting": {"height": height, "width": width, "batch_size": batch_size, "dtype": "float32"},
        "hardware": {"device": "cpu", "threads": torch.get_num_threads(), "machine": platform.machine()},
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "costs": [asdict(cost) for cost in costs],
    }
    path.write_text(json.dumps(content, indent=2))


def _inputs(height: int, width: int, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = torch.randn(batch_size, 3, height, width, generator=torch.Generator().manual_seed(0))
    return pixels, torch.ones(batch_size, height, width, dtype=torch.long)


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def _in_fresh_process(measure: partial) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure)
