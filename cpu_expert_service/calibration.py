"""Measures, in a fraction of a second at start-up, how fast memory is read and experts are computed.

What follows from the figures is decided in kernel_choice.py.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from cpu_expert_service.kernel import LayerFunction
from fiddler.expert_math import LayerWeights
from fiddler.kernels.native import Pool

STREAMS = (1, 2, 4, 8, 16)
_READ_BYTES = 48 * 2**20  # at a time; more than caches hold while experts take turns
_READ_ROUNDS = 2
_READ_SECONDS = 0.02
_REPEATS = 3


@dataclass(frozen=True, slots=True)
class Timing:
    """How long one kernel takes for one number of rows of one expert."""

    kernel: str
    rows: int
    seconds: float


def read_bytes_per_second(pool: Pool, layers: Sequence[LayerWeights]) -> float:
    """The rate of the fastest of several ways to read weights once, by all threads: the limit of any kernel at one row.

    Experts take turns, because a cache would answer for memory if one expert were read again.
    """
    spans = itertools.cycle(
        (matrix.data_ptr(), matrix.numel() * matrix.itemsize)
        for layer in layers
        for expert in layer.experts
        for _, matrix in expert.matrices()
        if matrix.is_contiguous()
    )
    best = 0.0
    for streams in STREAMS * _READ_ROUNDS:
        done_bytes, began = 0, time.perf_counter()
        for address, span_bytes in spans:
            pool.read(address, span_bytes, streams)
            done_bytes += span_bytes
            # each call wakes the threads: with small experts on busy CPUs, bytes alone would take minutes
            if done_bytes >= _READ_BYTES or time.perf_counter() - began > _READ_SECONDS:
                break
        if done_bytes:
            best = max(best, done_bytes / (time.perf_counter() - began))
    return best


def time_kernel(
    name: str, compute: LayerFunction, *, layer: LayerWeights, rows: int, dtype: torch.dtype, seconds: float
) -> Timing:
    """The shortest time of rows that all go to one expert, a different one each time.

    The shortest, because the GPU service starts at the same time: a kernel whose threads give way to others would seem
    slower than it is while it serves.

    Args:
        name: The kernel's.
        compute: The kernel, prepared for the layer.
        layer: The experts.
        rows: How many hidden rows at a time.
        dtype: Of the hidden rows.
        seconds: About how long to measure.
    """
    hidden = torch.randn(rows, layer.experts[0].up.shape[1], generator=torch.Generator().manual_seed(0)).to(dtype)
    weights = torch.ones(rows, 1)
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < _REPEATS or time.perf_counter() < end:
        expert = len(samples) % len(layer.experts)
        ids = torch.full((rows, 1), expert, dtype=torch.int32)
        began = time.perf_counter()
        compute(hidden, ids, weights)
        samples.append(time.perf_counter() - began)
        if time.perf_counter() > end + seconds * 4:
            break
    return Timing(name, rows, min(samples))


def crossing(rows: Sequence[int], first: Callable[[int], float], second: Callable[[int], float]) -> int | None:
    """The fewest rows from which on the second is faster at every count that was measured; None if it never is."""
    found = None
    for count in sorted(rows, reverse=True):
        if second(count) >= first(count):
            break
        found = count
    return found
