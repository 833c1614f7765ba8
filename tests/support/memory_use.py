"""What a computation takes of the CPU's memory, in PyTorch's tensors."""

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile


def peak_bytes(compute: Callable[[], object]) -> int:
    """The most bytes that tensors which it makes take at once, its result included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = compute()
    del result
    inner: Any = profiler.profiler
    changes = [event for event in inner.kineto_results.events() if event.name() == "[memory]"]
    total = most = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        total += change.nbytes()
        most = max(most, total)
    return int(most)
