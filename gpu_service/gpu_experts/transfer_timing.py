"""Measures how long the copy of one expert to the device takes."""

import statistics
import time
from collections.abc import Sequence
from functools import partial

from gpu_service.gpu_experts.copier import Copier, Job, Urgency
from gpu_service.gpu_experts.keys import ExpertKey, spread_keys
from gpu_service.gpu_experts.lanes import Lane
from gpu_service.gpu_experts.slots import Slot
from gpu_service.gpu_experts.stored import StoredExperts

_SAMPLE_BYTES = 256 * 2**20
"""Copied in all: more than caches hold, since a cache would answer faster than memory."""
_MIN_SAMPLES = 5
_IN_A_ROW = 4
"""Copies of small experts that are timed as one. The copier counts a copy as ended once its last chunk is enqueued, so
that several are under way at once; of a single one, the time until it has landed would be a large part."""
_SMALL_BYTES = 64 * 2**20
_MAX_SAMPLES = 32


def time_transfer(slot: Slot, stored: StoredExperts, *, copier: Copier, lane: Lane) -> float:
    """Returns the median seconds of one expert's copy, measured while nothing else is copied.

    Args:
        slot: An unused slot, to which several experts are copied one after another.
        stored: The experts.
        copier: Carries out the copies.
        lane: The copier's lane.
    """

    def job_of(key: ExpertKey) -> Job:
        form, read, check = stored.form(key), partial(stored.__getitem__, key), partial(stored.check, key)
        return Job(form, slot.place(form), Urgency.DEMAND, fence=slot.fence, check=check, read=read)

    def seconds(keys: Sequence[ExpertKey]) -> float:
        jobs = [job_of(key) for key in keys]
        began = time.perf_counter()
        for job in jobs:
            copier.submit(job)
        for job in jobs:
            job.wait()
        lane.synchronize()
        return (time.perf_counter() - began) / len(keys)

    in_a_row = _IN_A_ROW if slot.num_bytes < _SMALL_BYTES else 1
    num_samples = min(max(_SAMPLE_BYTES // (slot.num_bytes * in_a_row), _MIN_SAMPLES), _MAX_SAMPLES)
    keys = spread_keys(stored.num_experts, num_samples * in_a_row)
    groups = [keys[begin : begin + in_a_row] for begin in range(0, len(keys), in_a_row)]
    for group in groups:  # untimed: the first read of a page of the map waits for the disk
        seconds(group)
    return statistics.median(seconds(group) for group in groups)
