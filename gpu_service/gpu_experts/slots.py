"""Which expert is in which slot, and what is on its way there. Why an expert is copied is expert_slots.py's.

All slots are alike. One is either resident, and keeps what is copied to it until that is evicted, or a streaming slot,
and holds an expert for one batch. For the engine's thread.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import torch

from fiddler.checkpoint import Checkpoint
from fiddler.expert_math import ExpertWeights
from gpu_service.gpu_experts.copier import Copier, Job, Urgency
from gpu_service.gpu_experts.keys import ExpertKey
from gpu_service.gpu_experts.lanes import Lane, Mark
from gpu_service.gpu_experts.stored import StoredExperts

_ALIGNMENT_BYTES = 256  # what CUDA's own allocations have, and more than any kernel of a matrix product asks for


def slot_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of a slot that holds any of the checkpoint's experts, in the dtype they are stored in."""
    return max(
        sum(_padded(view.num_bytes) for view in expert.views.values())
        for layer in checkpoint.layers
        for expert in layer.experts
    )


class Slot:
    """Memory for one expert. It may be written again and again."""

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        self.num_bytes = num_bytes
        self.fence: Mark = None
        """The point until which what it held before is still read."""
        self._memory = torch.empty(num_bytes, dtype=torch.uint8, device=device)

    def place(self, expert: ExpertWeights) -> ExpertWeights:
        """Where the expert's tensors lie once copied here: contiguous views of their shapes and dtypes."""
        offset = 0
        views: dict[str, torch.Tensor] = {}
        for name, tensor in expert.tensors():
            views[name] = self._memory[offset : offset + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            offset += _padded(tensor.nbytes)
        return replace(expert, **views)


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES


_LEAST_FRACTION = 1e-6  # of a copy that is done but not taken up: to use it costs next to nothing
_NOTHING: Mapping[int, float] = MappingProxyType({})


class Holding(NamedTuple):
    """A slot, and the weights that it holds or is being given."""

    slot: Slot
    weights: ExpertWeights


class SlotTable:
    """Slots and their experts. Weights may be read once `land` has been told that they are there."""

    def __init__(
        self, stored: StoredExperts, lane: Lane, copier: Copier, resident: list[Slot], streaming: list[Slot]
    ) -> None:
        """All slots are empty."""
        self.empty = resident
        """Resident slots that hold nothing."""
        self.free = streaming
        """Streaming slots that hold nothing."""
        self.kept: dict[ExpertKey, Holding] = {}
        """In resident slots; the latest to be given one comes last."""
        self.passing: dict[ExpertKey, Holding] = {}
        """In streaming slots."""
        self.landing: dict[ExpertKey, Job] = {}
        """The copies of those of both that are not known to have landed."""
        self.ready: tuple[set[int], ...] = tuple(set() for _ in stored.num_experts)
        """By layer, the experts in resident slots that have landed."""
        self._stored = stored
        self._lane = lane
        self._copier = copier

    def pending(self, layer: int) -> Mapping[int, float]:
        """The layer's experts that are landing, and what fraction of their copy is still to do."""
        if not self.landing:
            return _NOTHING
        return {key[1]: max(_LEAST_FRACTION, job.fraction_left) for key, job in self.landing.items() if key[0] == layer}

    def hold(self, key: ExpertKey, evict: ExpertKey | None, urgency: Urgency) -> None:
        """Has an expert copied to the resident slot of another, or to an empty one."""
        self._copy(self.kept, self._make_room(evict), key, urgency)

    def pass_through(self, key: ExpertKey, urgency: Urgency) -> None:
        """Has an expert copied to a free streaming slot."""
        self._copy(self.passing, self.free.pop(), key, urgency)

    def keep(self, key: ExpertKey, evict: ExpertKey | None) -> None:
        """Makes the slot of a passing expert a resident one; that of the other, or an empty one, becomes free."""
        self.free.append(self._make_room(evict))
        self.kept[key] = self.passing.pop(key)

    def land(self, key: ExpertKey) -> None:
        """Takes note that an expert's copy has landed."""
        del self.landing[key]
        if key in self.kept:
            self.ready[key[0]].add(key[1])

    def evict(self, key: ExpertKey) -> None:
        """Empties a resident slot."""
        self.empty.append(self._vacate(self.kept, key))

    def let_pass(self, key: ExpertKey) -> None:
        """Frees a streaming slot."""
        self.free.append(self._vacate(self.passing, key))

    def _make_room(self, evict: ExpertKey | None) -> Slot:
        return self.empty.pop() if evict is None else self._vacate(self.kept, evict)

    def _vacate(self, where: dict[ExpertKey, Holding], key: ExpertKey) -> Slot:
        """Takes an expert out of its slot, which is written anew only after what reads it now."""
        slot = where.pop(key).slot
        if key in self.landing:
            self._copier.cancel(self.landing.pop(key))
        self.ready[key[0]].discard(key[1])
        slot.fence = self._lane.fence()
        return slot

    def _copy(self, where: dict[ExpertKey, Holding], slot: Slot, key: ExpertKey, urgency: Urgency) -> None:
        source = self._stored[key]
        target = slot.place(source)
        where[key] = Holding(slot, target)
        self.landing[key] = Job(source, target, urgency, slot.fence, partial(self._stored.check, key))
        self._copier.submit(self.landing[key])
