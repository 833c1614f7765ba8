"""Faults of each kind that a GPU hides most of the time are noticed on the imitated device."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from gpu_service.gpu_experts.lanes import CudaLane, _bits, _shaped
from gpu_service.gpu_experts.slots import SlotTable
from gpu_service.gpu_experts.streaming import ExpertCopies, ExpertCopy
from gpu_service.gpu_experts.uploads import Uploads
from gpu_service.moe.host_staging import HostStaging
from tests.support.imitated_cuda import SCHEDULES, Schedule
from tests.support.imitated_routes import Case, is_right

Plant = Callable[[pytest.MonkeyPatch], None]


def _no_wait_for_a_copy(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(CudaLane, "join", lambda lane, mark: None)


def _no_wait_for_readers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(CudaLane, "begin", lambda lane, fence: None)


def _no_fence(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(CudaLane, "fence", lambda lane, mark=None: None)


def _staging_filled_too_early(patch: pytest.MonkeyPatch) -> None:
    class Careless:
        def synchronize(self) -> None:
            pass

        def record(self, stream: Any) -> None:
            pass

    built = CudaLane.__init__

    def build(lane: CudaLane, *arguments: Any) -> None:
        built(lane, *arguments)
        lane._sent = [Careless(), Careless()]  # type: ignore[list-item]

    patch.setattr(CudaLane, "__init__", build)


def _copies_on_the_wrong_stream(patch: pytest.MonkeyPatch) -> None:
    def copy(lane: CudaLane, source: torch.Tensor, target: torch.Tensor) -> None:
        staged = _shaped(lane._staging[0], source)
        lane._sent[0].synchronize()
        lane._reader.copy(_bits(source), _bits(staged))
        stream = torch.cuda.Stream(lane._device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            target.copy_(staged, non_blocking=True)
            lane._sent[0].record(stream)

    patch.setattr(CudaLane, "copy", copy)


def _host_reads_too_early(patch: pytest.MonkeyPatch) -> None:
    def to_host(staging: HostStaging, **tensors: torch.Tensor) -> list[torch.Tensor]:
        return [staging._buffer(name, each).copy_(each, non_blocking=True) for name, each in tensors.items()]

    patch.setattr(HostStaging, "to_host", to_host)


def _released_too_early(patch: pytest.MonkeyPatch) -> None:
    wait = ExpertCopies.wait

    def wait_and_release(copies: ExpertCopies, copy: ExpertCopy) -> Any:
        weights = wait(copies, copy)
        copies.release(copy)
        return weights

    patch.setattr(ExpertCopies, "wait", wait_and_release)


def _upload_buffer_filled_too_early(patch: pytest.MonkeyPatch) -> None:
    buffer = {}

    def next_buffer(uploads: Uploads, num_bytes: int) -> Any:
        if uploads not in buffer:
            pinned = torch.empty(2**16, dtype=torch.uint8, pin_memory=True)
            buffer[uploads] = pinned, torch.cuda.Event()  # type: ignore[no-untyped-call]
        return buffer[uploads]

    patch.setattr(Uploads, "_next", next_buffer)


def _slot_overwritten_while_read(patch: pytest.MonkeyPatch) -> None:
    place = SlotTable._copy

    def copy(table: SlotTable, where: Any, slot: Any, key: Any, urgency: Any) -> None:
        slot.fence = None
        place(table, where, slot, key, urgency)

    patch.setattr(SlotTable, "_copy", copy)


def _tensor_on_the_wrong_device(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Uploads, "to_device", lambda uploads, *tensors: tensors)


FAULTS: dict[str, tuple[Plant, str]] = {
    "compute does not wait for a copy": (_no_wait_for_a_copy, "streamed experts stay"),
    "a copy does not wait for the slot's readers": (_no_wait_for_readers, "all streamed"),
    "no fence when a slot is vacated": (_no_fence, "all streamed"),
    "a slot is overwritten while it is read": (_slot_overwritten_while_read, "all streamed"),
    "a staging buffer is filled before it is sent": (_staging_filled_too_early, "streamed experts stay"),
    "copies are on the wrong stream": (_copies_on_the_wrong_stream, "streamed experts stay"),
    "the host reads rows before they are copied": (_host_reads_too_early, "all remote"),
    "a copy is released before its reader is enqueued": (_released_too_early, "all streamed"),
    "an upload's buffer is filled before it is sent": (_upload_buffer_filled_too_early, "some resident, others remote"),
    "a tensor is on the wrong device": (_tensor_on_the_wrong_device, "all resident"),
}


def notices(case: Case, schedule: Schedule, fault: str, patch: pytest.MonkeyPatch) -> bool:
    """Whether other tokens or logits, or an error, come of a fault."""
    plant, route = FAULTS[fault]
    plant(patch)
    try:
        return not is_right(case, schedule, route)
    except (IndexError, RuntimeError, ValueError):  # what garbage makes of the code that reads it
        return True


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(mixtral: Case, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert notices(mixtral, "late", fault, monkeypatch)


def test_a_device_that_hurries_hides_most_of_them(mixtral: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the schedules, and not something else, are what notices them."""
    assert SCHEDULES[0] == "eager"
    assert not notices(mixtral, "eager", "compute does not wait for a copy", monkeypatch)
