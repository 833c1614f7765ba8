"""Measures how fast weights can be read: by the CPU's cores from memory, and by a GPU from its own.

It takes a second, for an estimate. The CPU expert service measures its own reading for its metrics.
"""

import time
from collections.abc import Callable

import torch

_HOST_BYTES = 512 * 2**20
"""More than the caches of a processor."""
_DEVICE_BYTES = 2**30
_ROUNDS = 7


def host_bytes_per_second() -> float:
    """Of all of PyTorch's threads together."""
    values = torch.ones(_HOST_BYTES // 4)
    return _HOST_BYTES / _shortest(lambda: values.sum())


def device_bytes_per_second(device: torch.device) -> float:
    """Of a GPU's memory."""
    values = torch.ones(_DEVICE_BYTES // 4, device=device)

    def read() -> None:
        values.sum()
        torch.cuda.synchronize(device)

    return _DEVICE_BYTES / _shortest(read)


def _shortest(work: Callable[[], object]) -> float:
    """The shortest of several runs, in seconds: other processes can only lengthen a run."""
    work()
    seconds = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
