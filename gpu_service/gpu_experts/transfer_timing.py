"""How long one expert takes to the device, measured."""

import statistics
import time
from functools import partial

from gpu_service.gpu_experts.copier import Copier, Job, Urgency
from gpu_service.gpu_experts.keys import ExpertKey, all_keys
from gpu_service.gpu_experts.lanes import Lane
from gpu_service.gpu_experts.slots import Slot
from gpu_service.gpu_experts.stored import StoredExperts

_SAMPLE_BYTES = 256 * 2**20  # together; more than caches hold, which would answer in place of memory
_MIN_SAMPLES = 5
_MAX_SAMPLES = 32


def time_transfer(slot: Slot, stored: StoredExperts, copier: Copier, lane: Lane) -> float:
    """The median seconds of one expert's copy to an unused slot, each time another's, with nothing else under way."""
    keys = _sample(stored, slot.num_bytes)
    for key in keys:  # once before, since the first to read a page of the map waits for it
        _copy(key, slot, stored, copier, lane)
    return statistics.median(_copy(key, slot, stored, copier, lane) for key in keys)


def _copy(key: ExpertKey, slot: Slot, stored: StoredExperts, copier: Copier, lane: Lane) -> float:
    source = stored[key]
    job = Job(source, slot.place(source), Urgency.DEMAND, slot.fence, partial(stored.check, key))
    began = time.perf_counter()
    copier.submit(job)
    job.wait()
    lane.synchronize()
    return time.perf_counter() - began


def _sample(stored: StoredExperts, slot_bytes: int) -> list[ExpertKey]:
    """Experts from all over the checkpoint."""
    keys = all_keys(stored.num_experts)
    wanted = min(max(_SAMPLE_BYTES // slot_bytes, _MIN_SAMPLES), _MAX_SAMPLES, len(keys))
    return [keys[len(keys) * number // wanted] for number in range(wanted)]
