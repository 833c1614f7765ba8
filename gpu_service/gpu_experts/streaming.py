"""Copies of experts for one batch, or ahead of one: which are demanded, and which of them get a streaming slot.

For the engine's thread. expert_slots.py holds what stays on the device beyond a batch.
"""

from collections import deque

from fiddler.expert_math import ExpertWeights
from gpu_service.gpu_experts.copier import Copier, Urgency
from gpu_service.gpu_experts.keys import ExpertKey
from gpu_service.gpu_experts.lanes import Lane
from gpu_service.gpu_experts.slots import SlotTable


class ExpertCopy:
    """An expert's weights on their way to the device for one batch.

    Call `release` in any case, even if `wait` was not called or raised an error.
    """

    def __init__(self, copies: "ExpertCopies", key: ExpertKey) -> None:
        """ExpertCopies creates it."""
        self.key = key
        self.demanded = False
        """Whether the current batch needs it; otherwise it is a prefetch."""
        self.seconds: float | None = None
        """How long the copying took, after `wait`; None if the weights had landed before."""
        self._copies = copies

    def wait(self) -> ExpertWeights:
        """Returns weights on the device, for what is enqueued from now on until `release`.

        On CUDA it waits until the copy is enqueued, not until it has landed. A prefetch becomes a demand.

        Raises:
            RuntimeError: The copy was released, or copies that were demanded before it were not.
            Exception: What the copying raised.
        """
        return self._copies.wait(self)

    def release(self) -> None:
        """Releases the weights: all that reads them is enqueued. Cancels an unfinished copy that was not to stay."""
        self._copies.release(self)


class ExpertCopies:
    """The copies that are not released, at most one of each expert. ExpertSlots describes the operations."""

    def __init__(self, table: SlotTable, copier: Copier, lane: Lane) -> None:
        self._table = table
        self._copier = copier
        self._lane = lane
        self._copies: dict[ExpertKey, ExpertCopy] = {}  # the oldest first
        self._waiting: deque[ExpertKey] = deque()  # demanded while no slot is free; nothing is prefetched then

    def is_demanded(self, key: ExpertKey) -> bool:
        """Whether a batch needs a copy of this expert, or computes with it."""
        copy = self._copies.get(key)
        return copy is not None and copy.demanded

    def is_evictable(self, key: ExpertKey) -> bool:
        """Whether the expert has a resident slot that may be given to another."""
        return key in self._table.kept and not self.is_demanded(key)

    def stream(self, key: ExpertKey, into: ExpertKey | None) -> ExpertCopy:
        """Demands a copy for the current batch."""
        table = self._table
        if self.is_demanded(key):
            raise ValueError(f"expert {key} is streamed already")
        if into is not None and key not in table.kept and not self.is_evictable(into):
            raise ValueError(f"expert {into} cannot make room for {key}: it is not resident, or is in use")
        copy = self._copies.setdefault(key, ExpertCopy(self, key))
        copy.demanded = True
        if key in table.landing:
            self._copier.set_urgency(table.landing[key], Urgency.DEMAND)
        if key in table.passing and into is not None:
            table.keep(key, into)
        elif key not in table.passing and key not in table.kept:
            self._begin(key, into)
        return copy

    def prefetch(self, key: ExpertKey) -> ExpertCopy | None:
        """Starts a copy ahead of a batch, if a streaming slot is free."""
        if not self._table.free or key in self._copies or key in self._table.kept:
            return None
        copy = self._copies[key] = ExpertCopy(self, key)
        self._table.pass_through(key, Urgency.PREFETCH)
        return copy

    def cancel_prefetch(self, key: ExpertKey) -> None:
        """Releases a copy that is not demanded."""
        if key in self._copies and not self.is_demanded(key):
            self._copies[key].release()

    def keep_prefetched(self, key: ExpertKey, evict: ExpertKey | None) -> bool:
        """Makes a prefetched expert's slot resident, in place of the evicted expert's or an empty one.

        Returns whether the expert was being prefetched.
        """
        if key not in self._copies or self.is_demanded(key):
            return False
        del self._copies[key]
        self._table.keep(key, evict)
        return True

    def release_all(self) -> None:
        """Releases all demanded copies."""
        for key in [key for key in self._copies if self.is_demanded(key)]:
            self._copies[key].release()

    def wait(self, copy: ExpertCopy) -> ExpertWeights:
        """Carries out ExpertCopy.wait."""
        key, table = copy.key, self._table
        if self._copies.get(key) is not copy:
            raise RuntimeError(f"the copy of expert {key} was released, or was a prefetch and had to make room")
        if not copy.demanded:
            self.stream(key, None)
        holding = table.kept.get(key) or table.passing.get(key)
        if holding is None:
            raise RuntimeError(f"expert {key} has no slot until those that were streamed before it are released")
        if key in table.landing:
            copy.seconds = self.join(key)
        return holding.weights

    def join(self, key: ExpertKey) -> float:
        """Waits for an expert that is landing. Returns the seconds that its copying took."""
        job = self._table.landing[key]
        job.wait()
        self._lane.join(job.mark)
        self._table.land(key)
        return job.busy_seconds

    def release(self, copy: ExpertCopy) -> None:
        """Carries out ExpertCopy.release."""
        key, table = copy.key, self._table
        if self._copies.get(key) is not copy:
            return
        del self._copies[key]
        if key in table.passing:
            table.let_pass(key)
            if self._waiting:
                table.pass_through(self._waiting.popleft(), Urgency.DEMAND)
        elif key not in table.kept:
            self._waiting.remove(key)
        elif key in table.landing and table.landing[key].error is not None:
            table.evict(key)
        elif key in table.landing:  # it was not waited for, but is to stay: ExpertSlots.poll makes it resident
            self._copier.set_urgency(table.landing[key], Urgency.SWAP)

    def _begin(self, key: ExpertKey, into: ExpertKey | None) -> None:
        """Starts a demanded copy, or queues it for a slot."""
        if into is not None:
            self._table.hold(key, into, Urgency.DEMAND)
            return
        if not self._table.free:
            prefetched = next((copy for copy in self._copies.values() if not copy.demanded), None)
            if prefetched is not None:
                prefetched.release()
        if self._table.free:
            self._table.pass_through(key, Urgency.DEMAND)
        else:
            self._waiting.append(key)
