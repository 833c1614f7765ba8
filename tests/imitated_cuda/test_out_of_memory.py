"""A device that runs out of memory at any allocation: the batch is right or fails, and nothing of it is held."""

import gc
from collections.abc import Iterator

import pytest
import torch

from gpu_service.gpu_experts.expert_slots import ExpertSlots
from gpu_service.model_runner.forward_input import Logits
from gpu_service.model_runner.model import Model
from tests.support.imitated_cuda import DEVICE, Machine, imitated_cuda
from tests.support.imitated_routes import Case
from tests.support.routes import FAST, SLOW, model_of, slots_of, way_of

WAY = way_of(SLOW, FAST, "layers", 16)
"""Some experts are resident, and the others are streamed."""
STEP = 61
"""One allocation of so many is tried here; `make imitated-cuda` tries all."""
TOKENS, POSITIONS = torch.tensor([[5, 9, 11, 30]]), torch.arange(4)[None]


class Subject:
    """A model with slots on a device with little memory."""

    def __init__(self, machine: Machine, model: Model, slots: ExpertSlots) -> None:
        self.machine, self.model, self.slots = machine, model, slots
        self.expected = self.logits()
        before = machine.memory.num_allocations
        self.logits()
        self.num_allocations = machine.memory.num_allocations - before

    def logits(self) -> torch.Tensor:
        with torch.inference_mode():
            return self.model.forward(TOKENS, POSITIONS, first_row=0, wants=Logits.LAST).cpu()

    def is_right(self) -> bool:
        return torch.allclose(self.logits(), self.expected, atol=1e-4)


@pytest.fixture
def subject(mixtral: Case) -> Iterator[Subject]:
    with imitated_cuda("eager") as machine:
        model = model_of(mixtral.directory, device=DEVICE)
        with slots_of(model, mixtral.directory, WAY) as slots:
            yield Subject(machine, model, slots)


def check(subject: Subject, allocation: int) -> None:
    """Checks a batch in which this allocation fails, and the next one."""
    memory, capacity = subject.machine.memory, subject.slots.capacity
    gc.collect()
    taken = memory.taken_bytes
    memory.fail_after(allocation)
    try:
        assert subject.is_right()
    except torch.OutOfMemoryError:
        assert capacity == 0, "there was memory of slots to give up"
    gc.collect()
    assert memory.taken_bytes <= taken, f"allocation {allocation}: the failed batch holds memory"
    assert subject.is_right(), f"the batch after the one whose allocation {allocation} failed"


def test_a_batch_whose_memory_runs_out_is_right_and_holds_nothing(subject: Subject) -> None:
    for allocation in range(0, subject.num_allocations, STEP):
        check(subject, allocation)
    assert subject.slots.capacity < WAY.capacity


def test_a_batch_that_fails_twice_leaves_nothing_demanded(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, make_room = subject.machine.memory, subject.model.dispatcher.make_room

    def make_room_in_vain() -> bool:
        memory.fail_after(40)
        return make_room()

    monkeypatch.setattr(subject.model.dispatcher, "make_room", make_room_in_vain)
    memory.fail_after(60)
    with pytest.raises(torch.OutOfMemoryError):
        subject.logits()
    assert not any(subject.slots._copies.is_demanded((layer, expert)) for layer in range(3) for expert in range(8))
    assert subject.is_right()


def test_a_batch_is_retried_once_the_failed_one_is_forgotten(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    compute = subject.model._compute

    def measured(*arguments: object, **more: object) -> torch.Tensor:
        taken.append(subject.machine.memory.taken_bytes)
        return compute(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(subject.model, "_compute", measured)
    slot_bytes = taken_by_slots(subject)
    subject.machine.memory.fail_after(subject.num_allocations - 20)  # when most activations are held
    assert subject.is_right()
    first, second = taken
    assert second == first - (slot_bytes - taken_by_slots(subject))


def taken_by_slots(subject: Subject) -> int:
    table = subject.slots._table
    return sum(slot.num_bytes for slot in [*table.empty, *(held.slot for held in table.kept.values())])
