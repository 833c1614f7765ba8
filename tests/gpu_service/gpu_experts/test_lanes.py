"""The lane to a GPU, on an imitated device: streams and events that record what is asked of them.

That CUDA keeps to its order is shown by the tests of expert slots, on a machine with a GPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from gpu_service.gpu_experts import lanes
from gpu_service.gpu_experts.lanes import CudaLane, HostLane, build_lane, chunk_bytes

DEVICE = torch.device("cpu")


@dataclass
class Device:
    """Everything that happened, in order."""

    log: list[tuple[Any, ...]] = field(default_factory=list)
    current: str = "compute"

    def stream(self, name: str) -> Any:
        device = self

        class Stream:
            def record_event(self, event: Any = None) -> Any:
                event = event or device.event()
                event.record(self)
                return event

            def synchronize(self) -> None:
                device.log.append(("synchronize stream", name))

            def wait_event(self, event: Any) -> None:
                device.log.append(("wait", name, event))

        stream = Stream()
        stream.name = name  # type: ignore[attr-defined]
        return stream

    def event(self, blocking: bool = False) -> Any:
        device = self

        class Event:
            is_blocking = blocking
            recorded = False

            def record(self, stream: Any) -> None:
                self.recorded = True
                device.log.append(("record", stream.name, self))

            def synchronize(self) -> None:
                assert self.is_blocking, "a wait that spins takes a CPU"
                device.log.append(("synchronize", self.recorded, self))

            def query(self) -> bool:
                return self.recorded

        return Event()


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()
    compute = device.stream("compute")

    @contextmanager
    def use(stream: Any) -> Iterator[None]:
        device.current = stream.name
        yield
        device.current = "compute"

    monkeypatch.setattr(torch.cuda, "Stream", lambda _: device.stream("copies"))
    monkeypatch.setattr(torch.cuda, "Event", device.event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: compute)
    monkeypatch.setattr(torch.cuda, "stream", use)
    monkeypatch.setattr(lanes, "_pinned", lambda num_bytes: torch.zeros(num_bytes, dtype=torch.uint8))
    return device


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def lane(device: Device, request: pytest.FixtureRequest) -> Iterator[CudaLane]:
    lane = CudaLane(DEVICE, 256, num_threads=request.param)
    yield lane
    lane.close()


def _matrix(dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(8, 16, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.uint8], ids=str)
@pytest.mark.parametrize("rows", [1, 2, 4])
def test_a_chunk_arrives_as_it_is(lane: CudaLane, dtype: torch.dtype, rows: int) -> None:
    source = _matrix(dtype)[:rows]
    target = torch.zeros(rows, 16, dtype=dtype)
    lane.copy(source, target)
    assert torch.equal(source, target)
    assert lane._unturned is None


def test_a_transposed_chunk_is_turned_by_the_device(lane: CudaLane) -> None:
    stored = _matrix()
    slot = torch.zeros(16, 8, dtype=torch.bfloat16)
    lane.copy(stored[2:6], slot.T[2:6])
    assert torch.equal(slot[:, 2:6], stored[2:6].T)
    assert torch.equal(slot[:, :2], torch.zeros(16, 2))
    assert lane._unturned is not None
    first = lane._unturned.data_ptr()
    lane.copy(stored[:2], slot.T[:2])
    assert torch.equal(slot[:, :6], stored[:6].T)
    assert lane._unturned.data_ptr() == first, "its memory is allocated once"
    on_device = lane._unturned[: stored[:2].nbytes].view(torch.bfloat16).view(2, 16)
    assert torch.equal(on_device, stored[:2]), "it was sent as it is stored"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.uint8], ids=str)
def test_strided_rows_are_gathered_on_the_way(lane: CudaLane, dtype: torch.dtype) -> None:
    stored, target = _matrix(dtype), torch.zeros(4, 8, dtype=dtype)
    lane.copy(stored[::2, 1::2], target)
    assert torch.equal(target, stored[::2, 1::2])
    assert lane._unturned is None


def test_a_buffer_is_filled_anew_only_when_it_has_been_sent(lane: CudaLane, device: Device) -> None:
    for row in range(4):
        source = _matrix()[row : row + 1]
        lane.copy(source, torch.zeros_like(source))
    what = [entry[0] for entry in device.log]
    assert what == ["synchronize", "record"] * 4
    waited = [entry for entry in device.log if entry[0] == "synchronize"]
    recorded = [entry for entry in device.log if entry[0] == "record"]
    assert [entry[1] for entry in waited] == [False, False, True, True]
    assert {entry[1] for entry in recorded} == {"copies"}
    for wait, record in zip(waited, recorded, strict=True):
        assert wait[2] is record[2], "it waits for the event that sent the same buffer"
    assert waited[0][2] is waited[2][2]
    assert waited[1][2] is waited[3][2]
    assert waited[0][2] is not waited[1][2]


def test_copies_wait_for_what_computes_and_what_computes_for_copies(lane: CudaLane, device: Device) -> None:
    fence = lane.fence()
    assert device.log == [("record", "compute", fence)]
    lane.begin(fence)
    assert device.log[-1] == ("wait", "copies", fence)
    lane.begin(None)
    mark = lane.end()
    assert device.log[2:] == [("record", "copies", mark)]
    assert lane.has_landed(mark)
    lane.join(mark)
    assert device.log[-1] == ("wait", "compute", mark)
    assert lane.fence(fence) is fence, "a mark is used again"
    assert lane.end(mark) is mark


def test_closing_waits_for_the_copies_under_way(lane: CudaLane, device: Device) -> None:
    lane.close()
    assert device.log[-1] == ("synchronize stream", "copies")


def test_sending_happens_on_the_stream_of_copies(lane: CudaLane, device: Device) -> None:
    streams = []
    stored = _matrix()

    class Watched(torch.Tensor):
        def copy_(self, source: torch.Tensor, non_blocking: bool = False) -> "Watched":
            streams.append((device.current, non_blocking))
            return super().copy_(source, non_blocking)  # type: ignore[return-value]

    lane.copy(stored, torch.zeros_like(stored).as_subclass(Watched))
    assert streams == [("copies", True)]
    assert device.current == "compute"


@pytest.mark.parametrize(
    ("slot_bytes", "expected"),
    [(352 * 2**20, 8 * 2**20), (9 * 2**20, 9 * 2**18), (2 * 2**20, 2**20), (73_728, 73_728), (300, 512)],
    ids=["a large expert", "a quarter of a middling one", "not too little", "a small one whole", "multiples of 256"],
)
def test_how_much_is_copied_at_a_time(slot_bytes: int, expected: int) -> None:
    assert chunk_bytes(slot_bytes) == expected


def test_the_lane_fits_the_device(device: Device) -> None:
    assert isinstance(build_lane(torch.device("cpu"), 4096), HostLane)
    lane = build_lane(torch.device("cuda"), 8 * 2**20)
    assert isinstance(lane, CudaLane)
    assert [buffer.nbytes for buffer in lane._staging] == [2 * 2**20] * 2
    lane.close()
