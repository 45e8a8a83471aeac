"""Where the time of a benchmark's case goes: PyTorch's operations by the time that each takes itself."""

from dataclasses import dataclass

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from sap_detr_hf.markdown_table import markdown_table

from .tasks import TASKS, Case

CALLS = 3


@dataclass
class OperationTime:
    """One kind of operation in one call of a case.

    Args:
        operation: PyTorch's name, such as "aten::mm".
        calls: how often it runs in one call of the case.
        milliseconds: that it takes itself in all of them, without the operations that it calls.
        share: of the time of all operations.
    """

    operation: str
    calls: float
    milliseconds: float
    share: float


def operation_times(case: Case) -> list[OperationTime]:
    """All operations of a case, the longest first; on a GPU the time that its kernels take there."""
    action = TASKS[case.task](case)
    action()  # libraries set themselves up
    on_gpu = case.device != "cpu"
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA][: 1 + on_gpu]) as found:
        for _ in range(CALLS):
            action()
        if on_gpu:
            torch.cuda.synchronize()
    own = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    # PyTorch's operations only: a GPU's kernels and annotated ranges are listed once more, with the same time.
    operations = [event for event in found.key_averages() if event.device_type == DeviceType.CPU]
    events = [event for event in operations if getattr(event, own) > 0 and not event.is_user_annotation]
    total = sum(getattr(event, own) for event in events)
    times = [
        OperationTime(event.key, event.count / CALLS, getattr(event, own) / CALLS / 1e3, getattr(event, own) / total)
        for event in events
    ]
    return sorted(times, key=lambda each: -each.share)


def profile_table(case: Case, times: list[OperationTime], count: int = 12) -> str:
    """The longest operations as a Markdown table."""
    rows = [[t.operation, f"{t.calls:.0f}", f"{t.milliseconds:.1f}", f"{t.share:.1%}"] for t in times[:count]]
    return markdown_table([f"{case.model}, {case.dtype}: operation", "calls", "ms", "share"], rows)
