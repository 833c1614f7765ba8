"""The thread that copies: all bits arrive, the most urgent first, and nothing hangs if something fails."""

import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fiddler.expert_math import ExpertWeights
from gpu_service.gpu_experts.copier import Copier, CopyCancelledError, Job, Urgency
from gpu_service.gpu_experts.lanes import HostLane
from tests.support.lanes import SECONDS, GatedLane
from tests.support.weights import plain

ROWS, COLUMNS = 4, 8
ROW_BYTES = COLUMNS * 4


def _weights(seed: int = 0) -> ExpertWeights:
    """Two matrices of ROWS chunks in all; a chunk is a row."""
    rows = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed))
    return ExpertWeights(None, rows[: ROWS // 2], rows[ROWS // 2 :])


def _empty_like(source: ExpertWeights) -> ExpertWeights:
    def empty(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else torch.full(tensor.shape, -1, dtype=tensor.dtype)

    return ExpertWeights(**{field.name: empty(getattr(source, field.name)) for field in fields(source)})  # type: ignore[arg-type]


def _job(seed: int = 0, urgency: Urgency = Urgency.DEMAND) -> Job:
    source = _weights(seed)
    return Job(source, _empty_like(source), urgency)


def _rows_of(job: Job) -> list[int]:
    """The addresses of a job's chunks."""
    source = job._source
    return [matrix[row].data_ptr() for matrix in (plain(source.up), plain(source.down)) for row in range(ROWS // 2)]


def _has_arrived(job: Job) -> bool:
    arrived = dict(job._target.tensors())
    return all(torch.equal(arrived[name], tensor) for name, tensor in job._source.tensors())


@pytest.fixture
def lane() -> GatedLane:
    return GatedLane(ROW_BYTES)


@pytest.fixture
def copier(lane: GatedLane) -> Iterator[Copier]:
    copier = Copier(lane)
    yield copier
    lane.open()
    copier.close()


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """A matrix or a vector, in any layout that a checkpoint may have."""
    rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    dtype = draw(st.sampled_from([torch.bfloat16, torch.float16, torch.float32]))
    base = torch.randn(rows * 2, columns * 2, generator=torch.Generator().manual_seed(rows)).to(dtype)
    layouts = {
        "contiguous": base[:rows, :columns].contiguous(),
        "strided rows": base[::2, :columns],
        "strided columns": base[:rows, ::2],
        "transposed": base[:columns, :rows].contiguous().T,
        "transposed and strided": base[:, ::2].T,
        "vector": base[0],
    }
    return layouts[draw(st.sampled_from(sorted(layouts)))]


@settings(deadline=None, max_examples=60)
@given(st.lists(tensors(), min_size=2, max_size=2), st.none() | tensors(), st.none() | tensors(), st.integers(4, 400))
def test_every_layout_arrives_in_chunks_that_are_small_enough(
    matrices: list[torch.Tensor], gate: torch.Tensor | None, bias: torch.Tensor | None, chunk_bytes: int
) -> None:
    chunks: list[int] = []

    class CountingLane(HostLane):
        def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
            chunks.append(source.nbytes)
            super().copy(source, target)

    up, down = matrices
    source = ExpertWeights(gate, up, down, down_bias=bias)
    job = Job(source, _empty_like(source), Urgency.DEMAND)
    lane = CountingLane(chunk_bytes)
    while not job.copy_chunk(lane):
        assert 0 < job.fraction_left < 1
    assert job.fraction_left == 0
    assert max(chunks) <= chunk_bytes
    assert sum(chunks) == job.total_bytes
    for field in fields(source):
        stored, copied = getattr(source, field.name), getattr(job._target, field.name)
        assert (stored is None and copied is None) or torch.equal(stored, copied)


def test_a_source_is_read_in_the_order_in_which_it_lies() -> None:
    """Read across that order, each element of a large matrix would be in another page."""
    sources: list[torch.Tensor] = []

    class NotingLane(HostLane):
        def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
            sources.append(source)
            super().copy(source, target)

    matrix = torch.randn(6, 8)
    source = ExpertWeights(matrix[:, ::2].T, matrix.T, matrix)
    job, lane = Job(source, _empty_like(source), Urgency.DEMAND), NotingLane(2 * ROW_BYTES)
    while not job.copy_chunk(lane):
        pass
    assert [part.stride() for part in sources] == [(8, 2)] * 2 + [(8, 1)] * 6


def test_the_most_urgent_comes_first_and_among_equals_the_first(copier: Copier, lane: GatedLane) -> None:
    begun = _job(0, Urgency.SWAP)
    copier.submit(begun)
    lane.wait_at_gate()
    swap, prefetch, demand, second = (
        _job(1, Urgency.SWAP),
        _job(2, Urgency.PREFETCH),
        _job(3, Urgency.DEMAND),
        _job(4, Urgency.DEMAND),
    )
    for job in (swap, prefetch, demand, second):
        copier.submit(job)
    lane.open()
    for job in (begun, swap, prefetch, demand, second):
        job.wait()
        assert _has_arrived(job)
    order = [*_rows_of(begun)[:1], *_rows_of(demand), *_rows_of(second), *_rows_of(prefetch)]
    assert lane.copied == [*order, *_rows_of(begun)[1:], *_rows_of(swap)]


def test_a_copy_under_way_can_be_hurried(copier: Copier, lane: GatedLane) -> None:
    swap, prefetch = _job(1, Urgency.SWAP), _job(2, Urgency.PREFETCH)
    copier.submit(prefetch)
    copier.submit(swap)
    lane.wait_at_gate()
    copier.set_urgency(swap, Urgency.DEMAND)
    lane.open()
    prefetch.wait()
    assert lane.copied == [*_rows_of(prefetch)[:1], *_rows_of(swap), *_rows_of(prefetch)[1:]]
    assert copier.copied_bytes == {Urgency.DEMAND: 4 * ROW_BYTES, Urgency.PREFETCH: 4 * ROW_BYTES, Urgency.SWAP: 0}


@pytest.mark.parametrize("chunks", [0, ROWS - 1], ids=["the first", "the last"])
def test_a_cancelled_copy_ends_with_the_chunk_in_hand(copier: Copier, lane: GatedLane, chunks: int) -> None:
    job, other = _job(1), _job(2)
    copier.submit(job)
    lane.step(chunks)
    lane.wait_at_gate()
    copier.submit(other)
    copier.cancel(job)
    with pytest.raises(CopyCancelledError):
        job.wait()
    quiet = threading.Thread(target=copier.quiesce)
    quiet.start()
    quiet.join(0.05)
    assert quiet.is_alive(), "its chunk is still being copied"
    lane.step()
    quiet.join(SECONDS)
    assert not quiet.is_alive()
    lane.open()
    other.wait()
    assert lane.copied == [*_rows_of(job)[: chunks + 1], *_rows_of(other)]
    copier.cancel(other)
    other.wait()  # it had ended before the copier was closed


def test_a_failure_is_told_to_who_waits_and_to_nobody_else(copier: Copier, lane: GatedLane) -> None:
    failing, next_one = _job(1), _job(2)
    lane.failure = OSError("the disk is gone")
    copier.submit(failing)
    copier.submit(next_one)
    lane.let_through()
    with pytest.raises(OSError, match="the disk is gone"):
        failing.wait()
    lane.failure = None
    lane.open()
    next_one.wait()
    assert _has_arrived(next_one)
    assert lane.copied == _rows_of(next_one)


def test_a_source_that_must_not_be_read_is_not(copier: Copier, lane: GatedLane) -> None:
    def check() -> None:
        raise OSError("cut short")

    lane.open()
    source = _weights()
    job = Job(source, _empty_like(source), Urgency.DEMAND, check=check)
    copier.submit(job)
    with pytest.raises(OSError, match="cut short"):
        job.wait()
    assert lane.copied == []


def test_closing_ends_the_thread_and_what_waits(copier: Copier, lane: GatedLane) -> None:
    in_hand, queued = _job(1), _job(2, Urgency.SWAP)
    copier.submit(in_hand)
    copier.submit(queued)
    lane.wait_at_gate()
    closing = threading.Thread(target=copier.close)
    closing.start()
    for job in (in_hand, queued):
        with pytest.raises(CopyCancelledError):
            job.wait()
    lane.open()
    closing.join(SECONDS)
    assert not closing.is_alive()
    assert not copier._thread.is_alive()
    assert lane.copied == _rows_of(in_hand)[:1]
    with pytest.raises(CopyCancelledError):
        copier.submit(_job(3))


def test_an_idle_copier_holds_no_tensor(copier: Copier, lane: GatedLane) -> None:
    """The last job must not keep memory that slots gave back."""
    lane.open()
    job = _job(1)
    held = weakref.ref(job)
    copier.submit(job)
    job.wait()
    del job
    until = time.monotonic() + SECONDS
    while held() is not None and time.monotonic() < until:
        time.sleep(0.001)  # the copier's thread drops the job only when it goes to sleep
    assert held() is None
