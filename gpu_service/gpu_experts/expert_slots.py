"""The experts that are on the device or being copied there: to stay, for the current batch, or ahead of a batch.

placement decides what is resident, the planner what is streamed. Everything here is for the engine's thread, and
residency changes only within a call: the thread that copies changes no table.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from itertools import accumulate

import structlog
import torch

from fiddler.checkpoint import Checkpoint
from gpu_service.gpu_experts.copier import Copier, Urgency
from gpu_service.gpu_experts.keys import ExpertKey
from gpu_service.gpu_experts.lanes import Lane, build_lane
from gpu_service.gpu_experts.slots import Holding, Slot, SlotTable, slot_bytes
from gpu_service.gpu_experts.stored import StoredExperts
from gpu_service.gpu_experts.streaming import ExpertCopies, ExpertCopy
from gpu_service.gpu_experts.transfer_timing import time_transfer

Progress = Callable[[int, int], None]
"""(bytes done, bytes in all)"""

_SHRINK_PARTS = 8
"""When memory runs out, one slot of so many is given up."""
_log = structlog.get_logger("gpu_service")


class ExpertSlots:
    """The weights of experts on the device, in resident slots and a few streaming slots."""

    slot_bytes = staticmethod(slot_bytes)

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        capacity: int,
        *,
        num_streaming: int = 2,
        lane: Lane | None = None,
    ) -> None:
        """Allocates all slots, which are empty, and starts the thread that copies.

        Args:
            checkpoint: The experts. They are read from its memory map.
            device: Where the slots are.
            capacity: The number of resident slots.
            num_streaming: The number of streaming slots: how many experts may be copied or in use for a batch, or be
                copied ahead of one, at the same time.
            lane: Transports bytes to the device; None: the lane for this device.

        Raises:
            torch.OutOfMemoryError: The slots do not fit.
        """
        num_bytes = slot_bytes(checkpoint)
        slots = [Slot(num_bytes, device) for _ in range(capacity + num_streaming)]
        self._stored = StoredExperts(checkpoint)
        self._lane = lane or build_lane(device, num_bytes)
        self._copier = Copier(self._lane)
        self._table = SlotTable(
            self._stored, self._lane, self._copier, resident=slots[:capacity], streaming=slots[capacity:]
        )
        self._copies = ExpertCopies(self._table, self._copier, self._lane)

    @property
    def capacity(self) -> int:
        """The number of resident slots, including empty ones."""
        return len(self._table.kept) + len(self._table.empty)

    @property
    def num_empty(self) -> int:
        """The number of resident slots that hold no expert and are not being copied to."""
        return len(self._table.empty)

    @property
    def copied_bytes(self) -> dict[str, int]:
        """Bytes copied since the start, by reason: demand, prefetch or swap. For any thread."""
        return {urgency.name.lower(): count for urgency, count in self._copier.copied_bytes.items()}

    def resident(self, layer: int) -> Set[int]:
        """Returns the layer's resident experts: a live view, as `resident_keys` is."""
        return self._table.ready[layer]

    def resident_keys(self) -> Collection[ExpertKey]:
        """Returns all experts that have a resident slot, including those being copied; the latest comes last."""
        return self._table.kept.keys()

    def pending(self, layer: int) -> Mapping[int, float]:
        """Returns the layer's experts that are being copied, or were copied ahead, and the fraction still to copy."""
        return self._table.pending(layer)

    def holding(self, key: ExpertKey) -> Holding:
        """Returns a resident expert's slot and its weights there.

        What reads them must be enqueued before `stream`, `swap` or `shrink` gives its slot to another expert.

        Raises:
            KeyError: The expert is not resident.
        """
        if key[1] not in self._table.ready[key[0]]:
            raise KeyError(f"expert {key} is not resident")
        return self._table.kept[key]

    def poll(self) -> None:
        """Makes experts resident whose copies have landed, and gives up failed copies. Call it between layers."""
        for key, job in list(self._table.landing.items()):
            if not job.has_ended:
                continue
            if job.error is not None:
                self._give_up(key, job.error)
            elif key in self._table.kept and self._lane.has_landed(job.mark):
                self._table.land(key)

    def load(self, keys: Iterable[ExpertKey], progress: Progress | None = None) -> None:
        """Fills empty slots and waits until all of the experts are resident. For the start.

        Args:
            keys: Experts that are not on the device.
            progress: Called after every expert.

        Raises:
            ValueError: There are more experts than empty slots, or one is on the device already.
            Exception: What the copying raised.
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
        """Copies an expert that the current batch needs, ahead of everything less urgent.

        Stream the `pending` ones first. If there are more experts than free slots, the later copies start when earlier
        ones are released: wait for them in the order of these calls.

        Args:
            key: The expert. A copy of it that is under way becomes urgent; a resident expert is not copied.
            into: A resident expert that is evicted at once, and whose slot the new one keeps; None: it does not stay.

        Raises:
            ValueError: The expert is streamed already, or `into` is not resident or is itself streamed.
        """
        return self._copies.stream(key, into)

    def prefetch(self, key: ExpertKey) -> ExpertCopy | None:
        """Copies an expert that a later layer may need, as soon as no demanded copy is left.

        A demand that finds no free slot takes the slot of the oldest prefetch.

        Returns:
            The copy, which a later `stream` returns again; None if no slot is free, or the expert is on the device
            or on its way.
        """
        return self._copies.prefetch(key)

    def cancel_prefetch(self, key: ExpertKey) -> None:
        """Gives up a prefetch. Does nothing if the expert was streamed, or its copy given up, in the meantime."""
        self._copies.cancel_prefetch(key)

    def release_all(self) -> None:
        """Releases the copies that a failed batch did not release."""
        self._copies.release_all()

    def swap(self, evict: ExpertKey | None, load: ExpertKey) -> bool:
        """Copies an expert in the background; `poll` makes it resident once it has landed.

        Args:
            evict: A resident expert, evicted at once; None: an empty slot is used.
            load: The expert to copy.

        Returns:
            Whether the copy was started. It is not if `load` has a resident slot or is streamed, if `evict` is not
            resident or is streamed, or if no slot is empty.
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
            count: The number of slots; None: an eighth of all.
            least_valuable: Experts to give up after the empty slots, and before those that were copied last.

        Returns:
            Whether there was any slot to give up; one whose expert the batch streams is kept.
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
        """Measures the seconds of one copy, while nothing else is copied; infinite without a streaming slot."""
        if not self._table.free:
            return math.inf
        return time_transfer(self._table.free[-1], self._stored, copier=self._copier, lane=self._lane)

    def close(self) -> None:
        """Ends the thread and cancels its copies. Weights on the device stay for as long as they are referenced."""
        self._copier.close()
        self._lane.close()
        self._stored.close()

    def _give_up(self, key: ExpertKey, error: Exception) -> None:
        """Gives up a failed copy, unless it is demanded: then its error is raised to the thread that waits for it."""
        if self._copies.is_demanded(key):
            return
        _log.warning("copying an expert failed", layer=key[0], expert=key[1], reason=str(error))
        if key in self._table.kept:
            self._table.evict(key)
        else:
            self._copies.cancel_prefetch(key)
