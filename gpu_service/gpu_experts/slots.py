"""Slots, memory of one expert each, and the table of which expert is in which slot or on its way there.

All slots are alike. A resident slot keeps its expert until that is evicted; a streaming slot holds one for one batch.
expert_slots.py decides which expert is copied, and why. For the engine's thread.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from types import MappingProxyType

import torch

from fiddler.checkpoint import Checkpoint
from fiddler.expert_math import ExpertWeights
from gpu_service.gpu_experts.copier import Copier, Job, Urgency
from gpu_service.gpu_experts.keys import ExpertKey
from gpu_service.gpu_experts.lanes import Lane, Mark
from gpu_service.gpu_experts.projections import Facts, facts_of
from gpu_service.gpu_experts.stored import StoredExperts

_ALIGNMENT_BYTES = 256
"""The alignment of CUDA's own allocations, and more than any kernel of a matrix product needs."""
_LEAST_FRACTION = 1e-6
"""What is reported to be left of a copy that is complete but not in use yet: using it costs next to nothing."""
_NOTHING: Mapping[int, float] = MappingProxyType({})


def slot_bytes(checkpoint: Checkpoint) -> int:
    """Returns the bytes of a slot that can hold any expert of the checkpoint, in the dtype in which it is stored."""
    return max(
        sum(_padded(num_bytes) for view in expert.views.values() for num_bytes in view.plane_bytes)
        for layer in checkpoint.layers
        for expert in layer.experts
    )


class Slot:
    """Memory for one expert, which is written many times."""

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        self.num_bytes = num_bytes
        self.fence: Mark = None
        """The point of the engine's stream until which the previous expert is still read."""
        self.landed: Mark = None
        """The point of the lane at which the latest copy to this slot ended."""
        self.memory = torch.empty(num_bytes, dtype=torch.uint8, device=device)

    def place(self, expert: ExpertWeights) -> ExpertWeights:
        """Returns where the expert's tensors are copied to: contiguous views of their shapes and dtypes."""
        views: dict[str, torch.Tensor] = {}
        for name, start, tensor in places(expert):
            views[name] = self.memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        return expert.with_tensors(views)


def places(expert: ExpertWeights) -> Iterator[tuple[str, int, torch.Tensor]]:
    """The expert's tensors, each with its name and the byte of a slot at which it begins."""
    start = 0
    for name, tensor in expert.tensors():
        yield name, start, tensor
        start += _padded(tensor.nbytes)


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES


@dataclass(frozen=True, eq=False)
class Holding:
    """A slot, and the weights that it holds or that are being copied to it."""

    slot: Slot
    weights: ExpertWeights

    @cached_property
    def facts(self) -> Mapping[str, Facts]:
        """What a kernel needs of each matrix; see projections.py."""
        return facts_of(self.weights)

    def places(self) -> Iterator[tuple[str, int, torch.Tensor]]:
        """The tensors, each with its name and the byte of the slot at which it begins."""
        return places(self.weights)

    @property
    def end(self) -> int:
        """How many bytes of the slot the expert takes."""
        return sum(_padded(tensor.nbytes) for _, tensor in self.weights.tensors())


class SlotTable:
    """Slots and their experts. An expert's weights may be read after `land`."""

    def __init__(
        self, stored: StoredExperts, lane: Lane, copier: Copier, *, resident: list[Slot], streaming: list[Slot]
    ) -> None:
        """Starts with empty slots.

        Args:
            stored: The experts.
            lane: Gives the marks between copies and computations.
            copier: Carries out the copies.
            resident: Slots whose experts stay.
            streaming: Slots whose experts stay for one batch.
        """
        self.empty = resident
        """Empty resident slots."""
        self.free = streaming
        """Empty streaming slots."""
        self.kept: dict[ExpertKey, Holding] = {}
        """Experts in resident slots, the latest last."""
        self.passing: dict[ExpertKey, Holding] = {}
        """Experts in streaming slots."""
        self.landing: dict[ExpertKey, Job] = {}
        """Copies that are not known to have landed, to slots of either kind."""
        self.ready: tuple[set[int], ...] = tuple(set() for _ in stored.num_experts)
        """By layer, the experts in resident slots whose copy has landed."""
        self._stored = stored
        self._lane = lane
        self._copier = copier

    def pending(self, layer: int) -> Mapping[int, float]:
        """Returns the layer's experts that are landing, and the fraction of each copy that is still to do."""
        if not self.landing:
            return _NOTHING
        return {key[1]: max(_LEAST_FRACTION, job.fraction_left) for key, job in self.landing.items() if key[0] == layer}

    def hold(self, key: ExpertKey, evict: ExpertKey | None, urgency: Urgency) -> None:
        """Starts a copy to the resident slot of the evicted expert, or to an empty one."""
        self._copy(self.kept, self._make_room(evict), key, urgency)

    def pass_through(self, key: ExpertKey, urgency: Urgency) -> None:
        """Starts a copy to a free streaming slot."""
        self._copy(self.passing, self.free.pop(), key, urgency)

    def keep(self, key: ExpertKey, evict: ExpertKey | None) -> None:
        """Makes a passing expert's slot resident. The evicted expert's slot, or an empty one, will stream."""
        self.free.append(self._make_room(evict))
        self.kept[key] = self.passing.pop(key)

    def land(self, key: ExpertKey) -> None:
        """Notes that an expert's copy has landed."""
        holding = self.kept.get(key) or self.passing[key]
        holding.slot.landed = self.landing.pop(key).mark
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
        """Takes an expert out of its slot. The fence delays the next copy to it until all present reads are done."""
        slot = where.pop(key).slot
        if key in self.landing:
            self._copier.cancel(self.landing.pop(key))
        self.ready[key[0]].discard(key[1])
        slot.fence = self._lane.fence(slot.fence)
        return slot

    def _copy(self, where: dict[ExpertKey, Holding], slot: Slot, key: ExpertKey, urgency: Urgency) -> None:
        form = self._stored.form(key)
        target = slot.place(form)
        where[key] = Holding(slot, target)
        read, check = partial(self._stored.__getitem__, key), partial(self._stored.check, key)
        self.landing[key] = Job(form, target, urgency, fence=slot.fence, landed=slot.landed, check=check, read=read)
        self._copier.submit(self.landing[key])
