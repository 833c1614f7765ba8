"""What waits begins in order of priority, but for every eighth; what cannot be computed in its time does not wait."""

import time
from typing import Any

import pytest

from gpu_service.engine.generation import Answer
from gpu_service.engine.service_times import ServiceTimes
from gpu_service.engine.waiting_queue import WaitingQueue
from gpu_service.errors import OverloadedError, QueueFullError
from tests.support.requests import request_of

FAR = 1000.0


def _answer(left_seconds: float | None = None, **fields: Any) -> Answer:
    deadline = None if left_seconds is None else time.monotonic() + left_seconds
    return Answer(request_of([5], fields.pop("max_tokens", 100), deadline=deadline, **fields))


def _queue(*answers: Answer, seconds: float = 0.0, used_rows: int = 2, max_waiting: int = 100) -> WaitingQueue:
    """A queue of requests like those that have taken so many seconds and 100 tokens each."""
    times = ServiceTimes()
    if seconds:
        times.add(seconds, 100)
    queue = WaitingQueue(times, max_waiting, lambda: used_rows)
    for answer in answers:
        queue.add(answer)
    return queue


def _begin_all(queue: WaitingQueue) -> list[Answer]:
    begun = []
    while answer := queue.first():
        queue.begin(answer)
        begun.append(answer)
    return begun


def test_the_higher_priority_begins_first_and_then_the_earlier() -> None:
    low, high, high_too = _answer(), _answer(priority=1), _answer(priority=1)
    assert _begin_all(_queue(low, high_too, high)) == [high, high_too, low]


def test_a_steady_flow_at_a_higher_priority_does_not_starve_a_lower_one() -> None:
    low = _answer(priority=-5)
    queue = _queue(low)
    begun = []
    while low not in begun:
        queue.add(_answer(priority=2**31 - 1))
        first = queue.first()
        assert first is not None
        queue.begin(first)
        begun.append(first)
        assert len(begun) <= 8
    assert len(begun) == 8


def test_a_request_whose_time_is_up_never_begins() -> None:
    late, next_one = _answer(0), _answer()
    queue = _queue(late, next_one)
    assert queue.first() is next_one
    assert queue.take_dropped() == [late]
    assert queue.take_dropped() == []
    assert _queue(_answer(0)).first() is None


def test_a_request_that_could_not_be_computed_in_the_time_left_gives_way_to_others() -> None:
    hopeless, short, other = _answer(5), _answer(5, max_tokens=10), _answer(FAR)
    assert _begin_all(_queue(hopeless, other, seconds=10)) == [other]
    assert _begin_all(_queue(hopeless, seconds=10)) == [hopeless], "nobody else waits"
    assert _begin_all(_queue(short, other, seconds=10)) == [short, other]


def test_one_that_has_begun_and_lost_its_row_is_kept_until_its_time_is_up() -> None:
    suspended, other = _answer(5), _answer(FAR)
    suspended.generations[0].output.append(7)
    assert _begin_all(_queue(suspended, other, seconds=10)) == [suspended, other]


@pytest.mark.parametrize(
    ("left_seconds", "is_refused"),
    # 3 ahead in two rows of 10 s each: it begins in about 20 s and takes 10
    [(None, False), (100, False), (36, False), (34, True), (5, True)],
)
def test_what_would_end_after_its_deadline_is_refused_with_when_to_retry(
    left_seconds: float | None, is_refused: bool
) -> None:
    queue = _queue(*(_answer() for _ in range(3)), seconds=10)
    queue.add(answer := _answer(left_seconds))
    if not is_refused:
        queue.check(answer)
        assert answer in queue
        return
    with pytest.raises(OverloadedError, match="3 requests wait before this one") as raised:
        queue.check(answer)
    assert answer not in queue
    assert left_seconds is not None
    assert raised.value.retry_seconds == pytest.approx(max(1, 35 - left_seconds), abs=1)


def test_only_those_that_begin_before_it_count() -> None:
    queue = _queue(*(_answer() for _ in range(50)), seconds=10)
    queue.add(urgent := _answer(30, priority=1))
    queue.check(urgent)
    queue.check_time(2, time.monotonic() + 30)
    with pytest.raises(OverloadedError, match="51 requests wait"):
        queue.check_time(0, time.monotonic() + 30)


def test_nothing_is_refused_before_a_request_has_ended_or_while_none_waits() -> None:
    queue = _queue(*(_answer() for _ in range(50)))
    queue.add(answer := _answer(0.1))
    queue.check(answer)
    _queue(seconds=10).check_time(0, time.monotonic() + 0.1)


def test_a_full_queue_refuses_whatever_the_deadline() -> None:
    queue = _queue(_answer(), max_waiting=1)
    queue.add(answer := _answer())
    with pytest.raises(QueueFullError, match="1 requests wait already") as raised:
        queue.check(answer)
    assert raised.value.retry_seconds == 1
    assert len(queue) == 1
