"""The experts that lie on the device or are on their way there, and why: to stay, for one batch, or ahead of one.

What should be resident is placement.py's to decide, what is streamed planner.py's. Everything here is for the engine's
thread, and nothing becomes resident or ceases to be except in a call: the thread that copies changes no table.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from itertools import accumulate

import structlog
import torch

from fiddler.checkpoint import Checkpoint
from fiddler.expert_math import ExpertWeights
from gpu_service.gpu_experts.copier import Copier, Urgency
from gpu_service.gpu_experts.keys import ExpertKey
from gpu_service.gpu_experts.lanes import Lane, build_lane
from gpu_service.gpu_experts.slots import Slot, SlotTable, slot_bytes
from gpu_service.gpu_experts.stored import StoredExperts
from gpu_service.gpu_experts.streaming import ExpertCopies, ExpertCopy
from gpu_service.gpu_experts.transfer_timing import time_transfer

Progress = Callable[[int, int], None]
"""(bytes done, bytes in all)"""

_SHRINK_PARTS = 8
_log = structlog.get_logger("gpu_service")


class ExpertSlots:
    """Weights of experts on the device, in resident slots and a few streaming slots."""

    slot_bytes = staticmethod(slot_bytes)

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        capacity: int,
        num_streaming: int = 2,
        lane: Lane | None = None,
    ) -> None:
        """Takes the memory of all slots, which are empty, and starts the thread that copies.

        Args:
            checkpoint: The experts. They are read from its memory map.
            device: Where the slots are.
            capacity: Resident slots.
            num_streaming: Streaming slots: how many experts may be under way or in use for a batch, or ahead of one.
            lane: How bytes get to the device; None for the one that fits it.

        Raises:
            torch.OutOfMemoryError: The slots do not fit.
        """
        num_bytes = slot_bytes(checkpoint)
        slots = [Slot(num_bytes, device) for _ in range(capacity + num_streaming)]
        self._stored = StoredExperts(checkpoint)
        self._lane = lane or build_lane(device, num_bytes)
        self._copier = Copier(self._lane)
        self._table = SlotTable(self._stored, self._lane, self._copier, slots[:capacity], slots[capacity:])
        self._copies = ExpertCopies(self._table, self._copier, self._lane)

    @property
    def capacity(self) -> int:
        """Resident slots, empty ones included."""
        return len(self._table.kept) + len(self._table.empty)

    @property
    def num_empty(self) -> int:
        """Resident slots that hold nothing and are given nothing."""
        return len(self._table.empty)

    @property
    def copied_bytes(self) -> dict[str, int]:
        """Bytes copied since the start, by why: demand, prefetch or swap. For any thread."""
        return {urgency.name.lower(): count for urgency, count in self._copier.copied_bytes.items()}

    def resident(self, layer: int) -> Set[int]:
        """The layer's experts that are on the device to stay. A live view, as `resident_keys` is."""
        return self._table.ready[layer]

    def resident_keys(self) -> Collection[ExpertKey]:
        """All experts that have a resident slot, those under way included; the latest to be copied comes last."""
        return self._table.kept.keys()

    def pending(self, layer: int) -> Mapping[int, float]:
        """The layer's experts whose copy is under way, or done ahead of time, and the fraction of it still to do."""
        return self._table.pending(layer)

    def weights(self, key: ExpertKey) -> ExpertWeights:
        """The weights of an expert in `resident`.

        What reads them must be enqueued before its slot is given to another, by `stream`, `swap` or `shrink`.
        """
        if key[1] not in self._table.ready[key[0]]:
            raise KeyError(f"expert {key} is not resident")
        return self._table.kept[key].weights

    def poll(self) -> None:
        """Makes resident what has landed to stay, and gives up what failed. For between layers or batches."""
        for key, job in list(self._table.landing.items()):
            if not job.has_ended:
                continue
            if job.error is not None:
                self._give_up(key, job.error)
            elif key in self._table.kept and self._lane.has_landed(job.mark):
                self._table.land(key)

    def load(self, keys: Iterable[ExpertKey], progress: Progress | None = None) -> None:
        """Fills empty slots and waits until all of it is resident. For the start.

        Args:
            keys: Experts that are not on the device.
            progress: Called after every expert.

        Raises:
            ValueError: There are more than empty slots, or one is on the device.
            Exception: Whatever went wrong when one was copied.
        """
        keys = list(keys)
        for key in keys:
            if not self.swap(None, key):
                raise ValueError(f"expert {key} cannot be loaded: no slot is empty, or it is on the device already")
        done_bytes = list(accumulate(self._table.landing[key].total_bytes for key in keys))
        for key, done in zip(keys, done_bytes, strict=True):
            self._copies.join(key)
            if progress is not None:
                progress(done, done_bytes[-1])

    def stream(self, key: ExpertKey, into: ExpertKey | None = None) -> ExpertCopy:
        """Copies an expert that the batch at hand needs, before all that is less urgent.

        Those that are `pending` should come first. Where there are more than free slots, the others begin when those
        before them are released: they must be waited for in the order of these calls.

        Args:
            key: The expert. If it is on its way already, that copy is hurried; if it is resident, there is none.
            into: A resident expert that is evicted at once and whose slot this one keeps; None: it does not stay.

        Raises:
            ValueError: It is streamed already, or `into` is not resident or is itself streamed.
        """
        return self._copies.stream(key, into)

    def prefetch(self, key: ExpertKey) -> ExpertCopy | None:
        """Copies an expert that a later layer may need, once nothing is demanded.

        A demand that finds no free slot takes the oldest prefetch's.

        Returns:
            The copy, which `stream` returns again; None where no slot is free or the expert is on the device already.
        """
        return self._copies.prefetch(key)

    def cancel_prefetch(self, key: ExpertKey) -> None:
        """Gives up a prefetch; nothing where it was streamed or given up meanwhile."""
        self._copies.cancel_prefetch(key)

    def release_all(self) -> None:
        """Releases what a batch streamed and, since it failed, did not release."""
        self._copies.release_all()

    def swap(self, evict: ExpertKey | None, load: ExpertKey) -> bool:
        """Copies an expert in the background; `poll` makes it resident once it has landed.

        Args:
            evict: A resident expert, evicted at once; None where a slot is empty.
            load: The expert.

        Returns:
            Whether it was begun: not where `load` has a resident slot or is streamed, `evict` is not resident or is
            streamed, or no slot is empty.
        """
        table, copies = self._table, self._copies
        if load in table.kept or copies.is_demanded(load):
            return False
        if not (table.empty if evict is None else copies.is_evictable(evict)):
            return False
        if not copies.keep_prefetched(load, evict):
            table.hold(load, evict, Urgency.SWAP)
        return True

    def shrink(self, count: int | None = None, least_valuable: Sequence[ExpertKey] = ()) -> bool:
        """Gives memory of resident slots back to the device, which ran out of it.

        Args:
            count: How many slots; None for an eighth of all.
            least_valuable: Experts to give up once no slot is empty; after them those that were copied last.

        Returns:
            Whether there was any slot to give up: one whose expert is not streamed just now.
        """
        table = self._table
        count = -(-self.capacity // _SHRINK_PARTS) if count is None else count
        for key in [*least_valuable, *reversed(table.kept)]:
            if len(table.empty) >= count:
                break
            if self._copies.is_evictable(key):
                table.evict(key)
        given_up = min(count, len(table.empty))
        if given_up:
            self._copier.quiesce()
            self._lane.synchronize()
            del table.empty[-given_up:]
            self._lane.give_back()
        return given_up > 0

    def time_transfer(self) -> float:
        """Seconds of one expert's copy, measured; infinite without a streaming slot. For when nothing is copied."""
        if not self._table.free:
            return math.inf
        return time_transfer(self._table.free[-1], self._stored, self._copier, self._lane)

    def close(self) -> None:
        """Ends the thread. What is under way is given up; weights on the device stay for as long as they are used."""
        self._copier.close()
        self._lane.close()
        self._stored.close()

    def _give_up(self, key: ExpertKey, error: Exception) -> None:
        """A copy failed. One that is demanded is left alone: whoever waits for it is told."""
        if self._copies.is_demanded(key):
            return
        _log.warning("an expert could not be copied to the device", layer=key[0], expert=key[1], reason=str(error))
        if key in self._table.kept:
            self._table.evict(key)
        else:
            self._copies.cancel_prefetch(key)
