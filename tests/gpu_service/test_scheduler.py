import subprocess
import sys
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_service.request import Request
from gpu_service.sampling_parameters import SamplingParameters
from gpu_service.scheduler import Batch, QueueFullError, Scheduler


def _request(prompt_tokens: int = 3) -> Request:
    return Request(list(range(prompt_tokens)), SamplingParameters(), 8, frozenset(), frozenset(), lambda event: None)


def _run(scheduler: Scheduler, token: int = 100) -> Batch:
    batch = scheduler.next_batch()
    assert batch is not None
    scheduler.commit(batch, [token] * len(batch.requests) if batch.samples else [])
    return batch


def test_nothing_to_do() -> None:
    assert Scheduler(2, 2, 8).next_batch() is None


def test_a_prompt_is_computed_in_chunks_and_the_last_one_samples() -> None:
    scheduler = Scheduler(2, 2, prefill_chunk=4)
    request = _request(10)
    scheduler.add(request)
    batches = [_run(scheduler) for _ in range(3)]
    assert [batch.positions for batch in batches] == [[[0, 1, 2, 3]], [[4, 5, 6, 7]], [[8, 9]]]
    assert [batch.samples for batch in batches] == [False, False, True]
    assert request.output == [100]
    decode = _run(scheduler)
    assert (decode.token_ids, decode.positions) == ([[100]], [[10]])


def test_others_decode_between_the_chunks_of_a_long_prompt() -> None:
    scheduler = Scheduler(2, 2, prefill_chunk=2)
    first, second = _request(1), _request(6)
    scheduler.add(first)
    _run(scheduler)
    scheduler.add(second)
    order = [_run(scheduler).requests for _ in range(6)]
    assert order == [(first,), (second,), (first,), (second,), (first,), (second,)]


def test_requests_start_in_the_order_they_came_and_never_more_than_there_are_slots() -> None:
    scheduler = Scheduler(max_slots=2, max_waiting=8, prefill_chunk=8)
    requests = [_request() for _ in range(4)]
    for request in requests:
        scheduler.add(request)
    for _ in range(8):
        assert scheduler.num_running <= 2
        _run(scheduler)
    assert (scheduler.num_running, scheduler.num_waiting) == (2, 2)
    assert _run(scheduler).requests == tuple(requests[:2])
    scheduler.remove(requests[0])
    assert _run(scheduler).requests == (requests[2],)


def test_a_full_queue_refuses() -> None:
    scheduler = Scheduler(max_slots=1, max_waiting=1, prefill_chunk=8)
    scheduler.add(_request())
    scheduler.add(_request())
    with pytest.raises(QueueFullError):
        scheduler.add(_request())


def test_removing_twice_or_a_stranger_does_nothing() -> None:
    scheduler = Scheduler(1, 1, 8)
    request = _request()
    scheduler.add(request)
    assert scheduler.remove(request) == []
    assert scheduler.remove(request) == []
    assert scheduler.remove(_request()) == []


class _Rows:
    """What a cache would hold: for each row, whose token is at each position."""

    def __init__(self, slots: int) -> None:
        self.rows: list[list[tuple[int, int]]] = [[] for _ in range(slots)]

    def compute(self, batch: Batch) -> None:
        for row, (request, positions) in enumerate(zip(batch.requests, batch.positions, strict=True), batch.first_row):
            for position in positions:
                self.rows[row][position:] = [(request.number, position)]

    def check(self, batch: Batch) -> None:
        for row, request in enumerate(batch.requests, batch.first_row):
            assert self.rows[row] == [(request.number, position) for position in range(request.num_computed)]


@given(
    actions=st.lists(st.one_of(st.integers(1, 9), st.sampled_from(["step", "step", "remove"])), max_size=60),
    choices=st.randoms(use_true_random=False),
    slots=st.integers(1, 4),
)
def test_every_row_holds_its_own_request_whatever_comes_and_goes(
    actions: list[int | str], choices: "st.DataObject", slots: int
) -> None:
    scheduler = Scheduler(slots, 100, prefill_chunk=4)
    cache = _Rows(slots)
    pick: Callable[[list[Request]], Request] = choices.choice  # type: ignore[attr-defined]
    for action in actions:
        if isinstance(action, int):
            scheduler.add(_request(action))
        elif action == "remove" and scheduler.requests:
            for move in scheduler.remove(pick(scheduler.requests)):
                cache.rows[move.target] = cache.rows[move.source][: move.length]
        elif batch := scheduler.next_batch():
            cache.compute(batch)
            scheduler.commit(batch, [7] * len(batch.requests) if batch.samples else [])
            cache.check(batch)


def test_the_scheduler_needs_no_torch() -> None:
    code = "import sys, gpu_service.scheduler; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
