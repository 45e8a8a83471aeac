"""Speed and memory, compared in one run: cases take turns, round after round, and ratios are of the same round."""

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sap_detr_hf.environment import hardware_name, software_versions, tf32_settings
from sap_detr_hf.weights.pretrained import AUTOCAST_DTYPES

from .models import count_cost, count_training_products
from .tasks import TASKS, Case

WARM_UP_ROUNDS = 2
COUNTED_TASKS = ("forward", "training")  # those with multiply-adds

MEMORY_VARIABLES = ("LD_PRELOAD", "GLIBC_TUNABLES", "THP_MEM_ALLOC_ENABLE")  # beside MALLOC_...


@dataclass(frozen=True, kw_only=True)
class Measurement(Case):
    """What one case costs.

    Args:
        seconds: median over the rounds; `seconds_low` and `seconds_high` are the quartiles.
        speedup: median over the rounds of the first case's seconds / this case's seconds in the same round.
        images_per_second: batch size / seconds.
        peak_mib: memory that the call takes at its peak on top of the loaded model and its inputs, measured in a
            process of its own: resident memory on a CPU, allocated memory on a GPU. `None` where not measured.
        parameters: number of parameters, before any folding; `None` without a model.
        multiply_adds: of one image's forward pass; `None` without a model.
        rate_share: median over the rounds of the share of the rate of a large matrix product, of the same dtype and
            in the same round, that the forward pass or the training step reaches; `None` for other tasks. One product
            varies as a model does, so it can exceed 1.
    """

    seconds: float
    seconds_low: float
    seconds_high: float
    speedup: float
    images_per_second: float
    peak_mib: float | None = None
    parameters: int | None = None
    multiply_adds: int | None = None
    rate_share: float | None = None


def measure(cases: list[Case], rounds: int = 5, memory: bool = True, progress: Callable = iter) -> list[Measurement]:
    """Time cases in turn; the first is the one that ratios refer to.

    Args:
        cases: two or more that are comparable.
        memory: also run each model in a fresh process and take its peak.
        progress: wraps the rounds, for instance `tqdm.tqdm`.

    Raises:
        ValueError: no such model.
    """
    counted = [case for case in cases if case.task in COUNTED_TASKS]
    yardsticks = {case.dtype: matrix_product(case.dtype, case.device) for case in counted}
    actions = [*(TASKS[case.task](case) for case in cases), *yardsticks.values()]
    seconds = paired_seconds(actions, rounds, cases[0].device, progress)
    products = dict(zip(yardsticks, seconds[len(cases) :], strict=True))
    del actions, yardsticks
    if cases[0].device != "cpu":
        torch.cuda.empty_cache()  # for the processes that measure memory
    return [
        summary(case, times, seconds[0], products.get(case.dtype), memory)
        for case, times in zip(cases, seconds[: len(cases)], strict=True)
    ]


def paired_seconds(
    actions: Sequence[Callable[[], Any]], rounds: int, device: str = "cpu", progress: Callable = iter
) -> list[list[float]]:
    """Seconds of each action, round by round in turn, so that a drift of the machine hits all alike.

    Two more rounds go before and do not count.
    """
    seconds: list[list[float]] = [[] for _ in actions]
    for number in progress(range(WARM_UP_ROUNDS + rounds)):
        for action, times in zip(actions, seconds, strict=True):
            elapsed = timed(action, device)
            if number >= WARM_UP_ROUNDS:
                times.append(elapsed)
    return seconds


def summary(
    case: Case, seconds: list[float], reference: list[float], product: list[float] | None, memory: bool
) -> Measurement:
    """The measurement of a case from its rounds, those of the case that ratios refer to, and of the matrix product."""
    median = statistics.median(seconds)
    low, _, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else (median,) * 3
    result = Measurement(
        **asdict(case),
        seconds=median,
        seconds_low=low,
        seconds_high=high,
        speedup=statistics.median(a / b for a, b in zip(reference, seconds, strict=True)),
        images_per_second=case.batch_size / median,
    )
    if product is None:
        return result
    parameters, multiply_adds = count_cost(case.model, case.height, case.width, **case.overrides)
    products = multiply_adds
    if case.task == "training":
        products = count_training_products(case.model, case.height, case.width, **case.overrides)
    share = products * case.batch_size / matrix_size(case.device) ** 3
    return replace(
        result,
        peak_mib=in_fresh_process(case) if memory else None,
        parameters=parameters,
        multiply_adds=multiply_adds,
        rate_share=share * statistics.median(a / b for a, b in zip(product, seconds, strict=True)),
    )


def timed(action: Callable[[], Any], device: str) -> float:
    """Seconds of one call, until the device has finished it."""
    _finish(device)
    started = time.perf_counter()
    action()
    _finish(device)
    return time.perf_counter() - started


def matrix_size(device: str) -> int:
    """Rows and columns of the matrices of [`matrix_product`]."""
    return 2048 if device == "cpu" else 8192


def matrix_product(dtype: str, device: str) -> Callable[[], Any]:
    """A large square matrix product: the yardstick of a device's rate."""
    size = matrix_size(device)
    left, right = torch.rand(2, size, size, device=device, dtype=AUTOCAST_DTYPES[dtype])
    return lambda: left @ right


def peak_memory(case: Case) -> float:
    """MiB that a call takes at its peak on top of what is loaded; call it in a fresh process."""
    small = replace(case, height=256, width=256)  # enough tokens for 900 proposals
    TASKS[case.task](small)()  # what libraries allocate once
    action = TASKS[case.task](case)
    on_gpu = case.device != "cpu"
    before = torch.cuda.memory_allocated() / 2**20 if on_gpu else _resident_mib()
    if case.task == "training" or case.model.endswith((":compiled", ":flex")):
        action()  # compiles and makes the optimizer's state; what stays of it counts
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of building the models
    action()
    return (torch.cuda.max_memory_allocated() / 2**20 if on_gpu else _peak_resident_mib()) - before


def in_fresh_process(case: Case) -> float | None:
    """[`peak_memory`] of a case; `None` where the system tells no peak, or a GPU has too little memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        try:
            return pool.apply(peak_memory, (case,))
        except (OSError, torch.OutOfMemoryError):
            return None


def memory_settings() -> dict[str, str]:
    """Environment variables that are set and decide how memory of the processor is taken and given back."""
    names = [name for name in os.environ if name.startswith("MALLOC_") or name in MEMORY_VARIABLES]
    return {name: os.environ[name] for name in sorted(names)}


def environment(device: str) -> dict[str, Any]:
    """Hardware, versions and settings of the processor's memory, for the results' readers."""
    hardware = {"device": device, "cpu": hardware_name(torch.device("cpu")), "threads": torch.get_num_threads()}
    if device != "cpu":
        hardware |= {"gpu": hardware_name(torch.device(device)), "tf32": tf32_settings(torch.device(device))}
    return {"hardware": hardware, "versions": software_versions(), "memory_settings": memory_settings()}


def _finish(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def _resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _peak_resident_mib() -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))
