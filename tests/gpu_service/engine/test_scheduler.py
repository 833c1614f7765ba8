import subprocess
import sys

import pytest

from gpu_service.engine import generation as generation_module
from gpu_service.engine import kv_rows
from gpu_service.engine.generation import Answer
from gpu_service.errors import NeverFitsError, QueueFullError
from gpu_service.model_runner.forward_input import Logits
from gpu_service.model_runner.rope_angles import RopeAngles
from tests.support.model_of_cache import NAN, answer_of
from tests.support.scheduler_runs import SchedulerRun, prompt_of


@pytest.fixture
def grows_by_four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation_module, "GROWTH_TOKENS", 4)


def test_outputs_of_unknown_length_share_the_memory_as_they_grow(grows_by_four: None) -> None:
    run = SchedulerRun(max_rows=4, max_length=40, num_tokens=48)
    answers = [answer_of(prompt_of(4, first), 36, is_open_ended=True) for first in (0, 100, 200)]
    run.add(*answers)
    assert (run.scheduler.num_running, run.scheduler.num_waiting) == (3, 0)
    assert run.scheduler.used_kv_bytes == 3 * 8
    most = 0
    while run.scheduler.num_running:
        run.step()
        most = max(most, run.scheduler.num_waiting)
    assert most == 2, "the two that came last give way, since 40 of 48 tokens are one request's"
    assert [len(each.generations[0].output) for each in answers] == [36] * 3


def test_one_that_gave_way_goes_on_where_it_was(grows_by_four: None) -> None:
    run = SchedulerRun(max_rows=2, max_length=24, num_tokens=28, chunk=64)
    first, last = (answer_of(prompt_of(4, start), 20, is_open_ended=True) for start in (0, 100))
    run.add(first, last)
    while not run.scheduler.num_waiting:
        run.step()
    assert last.generations[0].row == -1
    output = list(last.generations[0].output)
    while run.scheduler.num_waiting:
        assert run.step().answers == [first]
    resumed = run.step()
    (span,) = resumed.spans
    assert (resumed.answers, resumed.is_prompt, span.logits) == ([last], True, Logits.NONE)
    expected = [*last.request.prompt, *output[:-1]]
    assert [*expected[: span.start], *span.token_ids] == expected
    assert last.generations[0].output == output, "no token is chosen twice"
    assert [span.token_ids for span in run.step().spans] == [[output[-1]]]


def test_outputs_of_several_rows_have_their_memory_at_once(grows_by_four: None) -> None:
    for answer in (
        answer_of(prompt_of(4), 20, rows=2, is_open_ended=True),
        answer_of(prompt_of(4), 20, beams=2, is_open_ended=True),
        answer_of(prompt_of(4), 20, start_token_id=0, is_open_ended=True),
        answer_of(prompt_of(4), 20),
    ):
        assert answer.reserved_length == 24
    open_ended, other = (answer_of(prompt_of(4), 20, is_open_ended=True) for _ in range(2))
    assert open_ended.reserved_length == 8
    SchedulerRun(rope_angles=RopeAngles(grows_beyond=8)).add(open_ended)
    assert open_ended.reserved_length == 24, "with angles that depend on length it cannot be computed again"
    SchedulerRun().add(other)
    assert other.reserved_length == 8


def test_nothing_to_do() -> None:
    assert SchedulerRun().scheduler.next_batch() is None


def test_requests_start_by_priority_and_then_in_the_order_they_came_and_never_more_than_fit() -> None:
    run = SchedulerRun(max_rows=2, max_waiting=8)
    answers = [answer_of([9, number], max_tokens=2, priority=number // 3) for number in range(5)]
    started: list[Answer] = []
    run.add(*answers)
    while (batch := run.step()) and run.scheduler.num_running:
        assert run.scheduler.num_running <= 2
        started += [answer for answer in batch.answers if answer not in started]
    # the first was admitted at once
    assert started == [answers[each] for each in (0, 1, 3, 4, 2)]


def test_a_request_takes_a_row_for_each_of_its_generations_or_beams() -> None:
    run = SchedulerRun(max_rows=4)
    wide, beams, narrow = answer_of([1, 2], rows=3), answer_of([3, 4], beams=2), answer_of([5])
    run.add(wide, beams, narrow)
    assert (run.scheduler.used_rows, run.scheduler.num_running, run.scheduler.num_waiting) == (3, 1, 2)
    assert run.step().generations == wide.generations[:1]
    assert run.step().generations == wide.generations
    for generation in wide.generations[:2]:
        run.scheduler.finish(generation)
    assert (run.scheduler.used_rows, run.scheduler.num_running) == (4, 3)


def test_a_large_request_is_not_overtaken_by_small_ones_that_came_later() -> None:
    run = SchedulerRun(max_rows=2)
    running, large, small = answer_of([1], max_tokens=3), answer_of([2], rows=2), answer_of([3])
    run.add(running, large, small)
    assert run.order(3) == [[running]] * 3
    assert run.step().answers == [large]
    assert run.scheduler.num_waiting == 1


def test_those_behind_a_large_request_start_when_it_is_given_up() -> None:
    run = SchedulerRun(max_rows=2)
    large, small = answer_of([2], rows=2), answer_of([3])
    run.add(answer_of([1]), large, small)
    run.scheduler.remove(large)
    assert (run.scheduler.num_running, run.scheduler.num_waiting) == (2, 0)


def test_a_prompt_whose_log_probabilities_are_wanted_is_computed_whole() -> None:
    run, prompt = SchedulerRun(chunk=64, alone_chunk=64), prompt_of(kv_rows.MIN_SHARED_TOKENS + 4)
    shared = [answer_of(prompt, max_tokens=1, **more) for more in ({}, {}, {"prompt_logprobs": 1})]
    run.add(*shared)
    while run.scheduler.num_running:
        run.step()
    assert [answer.cached_prompt_tokens for answer in shared] == [0, len(prompt) - 1, 0]


def test_a_full_queue_refuses_and_what_fits_does_not_wait() -> None:
    run = SchedulerRun(max_rows=1, max_waiting=0)
    run.add(answer_of([1]))
    with pytest.raises(QueueFullError):
        run.add(answer_of([2]))
    assert run.scheduler.num_waiting == 0


def test_what_can_never_fit_is_refused() -> None:
    run = SchedulerRun(max_rows=2, max_length=64, num_tokens=100)
    with pytest.raises(NeverFitsError):
        run.add(answer_of([1], rows=2, max_tokens=60))


def test_removing_twice_or_a_stranger_does_nothing() -> None:
    run, answer, waiting = SchedulerRun(max_rows=1), answer_of([1]), answer_of([2])
    run.add(answer, waiting)
    for each in (waiting, answer, answer, answer_of([3])):
        run.scheduler.remove(each)
    assert (run.scheduler.used_rows, run.scheduler.used_kv_bytes, run.scheduler.num_waiting) == (0, 0, 0)
    assert run.scheduler.next_batch() is None


@pytest.mark.parametrize("is_decoding", [False, True])
def test_a_spoiled_row_is_made_zeros(is_decoding: bool) -> None:
    run, answer, other = SchedulerRun(), answer_of(prompt_of(6), rows=2), answer_of(prompt_of(3, first=40))
    run.add(other, answer)
    for _ in range(8 if is_decoding else 3):
        run.step(non_finite=None if is_decoding else answer)
    if is_decoding:
        batch = run.scheduler.next_batch()
        assert batch is not None
        run.cache.compute(batch, non_finite=answer)
    assert any(NAN in row for row in run.cache.cells)
    run.scheduler.remove(answer, non_finite=True)
    assert not any(NAN in row for row in run.cache.cells)
    run.step()  # checks that the other request's row is unchanged


@pytest.mark.parametrize("alone_chunk", [None, 10])
def test_a_prompt_that_is_given_up_leaves_zeros(alone_chunk: int | None) -> None:
    """Its logits were never checked."""
    run, answer = SchedulerRun(alone_chunk=alone_chunk), answer_of(prompt_of(12))
    run.add(answer)
    run.step(non_finite=answer)
    run.scheduler.remove(answer)
    assert not any(NAN in row for row in run.cache.cells)


@pytest.mark.parametrize("module", ["scheduler", "kv_rows", "kv_budget"])
def test_the_scheduler_needs_no_torch(module: str) -> None:
    """In a fresh interpreter, so that what it imports through others is found too."""
    code = (
        f"import sys, gpu_service.engine.{module}; "
        "print(sorted({'torch', 'transformers', 'grpc'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout.strip() == b"[]"
