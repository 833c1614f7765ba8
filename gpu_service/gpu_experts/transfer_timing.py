"""Measures how long the copy of one expert to the device takes."""

import statistics
import time
from functools import partial

from gpu_service.gpu_experts.copier import Copier, Job, Urgency
from gpu_service.gpu_experts.keys import ExpertKey, spread_keys
from gpu_service.gpu_experts.lanes import Lane
from gpu_service.gpu_experts.slots import Slot
from gpu_service.gpu_experts.stored import StoredExperts

_SAMPLE_BYTES = 256 * 2**20
"""Copied in all: more than caches hold, since a cache would answer faster than memory."""
_MIN_SAMPLES = 5
_MAX_SAMPLES = 32


def time_transfer(slot: Slot, stored: StoredExperts, *, copier: Copier, lane: Lane) -> float:
    """Returns the median seconds of one expert's copy, measured while nothing else is copied.

    Args:
        slot: An unused slot, to which several experts are copied one after another.
        stored: The experts.
        copier: Carries out the copies.
        lane: The copier's lane.
    """

    def seconds(key: ExpertKey) -> float:
        form, read, check = stored.form(key), partial(stored.__getitem__, key), partial(stored.check, key)
        job = Job(form, slot.place(form), Urgency.DEMAND, fence=slot.fence, check=check, read=read)
        began = time.perf_counter()
        copier.submit(job)
        job.wait()
        lane.synchronize()
        return time.perf_counter() - began

    num_samples = min(max(_SAMPLE_BYTES // slot.num_bytes, _MIN_SAMPLES), _MAX_SAMPLES)
    keys = spread_keys(stored.num_experts, num_samples)
    for key in keys:  # untimed: the first read of a page of the map waits for the disk
        seconds(key)
    return statistics.median(seconds(key) for key in keys)
