"""How much of the decode time the device computes, copies, and does both, from PyTorch's profiler."""

from collections.abc import Sequence

from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.results import Results
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.strategies import STRATEGIES, decode, served

Interval = tuple[float, float]


def trace(setting: Setting, results: Results) -> None:
    """Profiles the decode steps of our own strategy, and writes the trace next to the model."""
    if not setting.is_real:
        results.record("trace", note="there is no device to profile")
        return
    with served(setting, STRATEGIES["ours"]) as model:
        decode(setting, model, rows=1)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            decode(setting, model, rows=1)
    file = setting.checkpoint / "trace.json"
    profiler.export_chrome_trace(str(file))
    events = [event for event in profiler.events() or () if event.device_type == DeviceType.CUDA]
    spans = [(event.time_range.start, event.time_range.end, event.name) for event in events]
    copies = merged([(start, end) for start, end, name in spans if name.startswith("Memcpy")])
    kernels = merged([(start, end) for start, end, name in spans if not name.startswith("Mem")])
    whole = max(end for _, end, _ in spans) - min(start for start, _, _ in spans)
    results.record(
        "trace",
        file=str(file),
        computing=round(length(kernels) / whole, 4),
        copying=round(length(copies) / whole, 4),
        both=round(length(overlap(kernels, copies)) / whole, 4),
        kernels=sum(not name.startswith("Mem") for *_, name in spans),
    )


def merged(intervals: Sequence[Interval]) -> list[Interval]:
    """The same stretches of time as intervals that do not overlap, ascending."""
    result: list[Interval] = []
    for start, end in sorted(intervals):
        if result and start <= result[-1][1]:
            result[-1] = result[-1][0], max(end, result[-1][1])
        else:
            result.append((start, end))
    return result


def overlap(one: Sequence[Interval], other: Sequence[Interval]) -> list[Interval]:
    """The stretches that are in both; each must be merged."""
    pairs = ((max(a, c), min(b, d)) for a, b in one for c, d in other)
    return [(start, end) for start, end in pairs if start < end]


def length(intervals: Sequence[Interval]) -> float:
    """All of their time."""
    return sum(end - start for start, end in intervals)
