import itertools
import random
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_service.engine import generation as generation_module
from gpu_service.engine import kv_rows
from gpu_service.engine.batches import prompts as prompts_module
from gpu_service.engine.batches.batch import Batch
from gpu_service.engine.generation import Answer
from gpu_service.engine.prefill_chunks import PrefillChunks
from gpu_service.engine.scheduler import Scheduler
from gpu_service.errors import NeverFitsError, QueueFullError
from gpu_service.model_runner.forward_input import Logits
from gpu_service.model_runner.rope_angles import ALL_ALIKE, RopeAngles
from tests.support.model_of_cache import NAN, ModelOfCache, answer_of, budget_of, text_of

_tokens = itertools.count(1000)


class _Run:
    """A scheduler and a model of the cache that it moves. No generated token occurs twice."""

    def __init__(
        self,
        max_rows: int = 4,
        max_length: int = 64,
        num_tokens: int | None = None,
        max_waiting: int = 8,
        chunk: int = 4,
        alone_chunk: int | None = None,
        rope_angles: RopeAngles = ALL_ALIKE,
        packs_spans: bool = False,
    ) -> None:
        budget = budget_of(max_rows, max_length, num_tokens)
        self.cache = ModelOfCache(budget, rope_angles)
        self.max_chunk = max(chunk, alone_chunk or chunk)
        self.scheduler = Scheduler(
            self.cache,
            budget,
            max_waiting=max_waiting,
            chunks=PrefillChunks(with_others=chunk, alone=alone_chunk or chunk, logprobs=3),
            rope_angles=rope_angles,
            packs_spans=packs_spans,
        )

    def add(self, *answers: Answer) -> None:
        for answer in answers:
            self.scheduler.add(answer)

    def step(self, non_finite: Answer | None = None) -> Batch:
        """Computes the next batch. Generations that reach their length end."""
        batch = self.scheduler.next_batch()
        assert batch is not None
        num_tokens = sum(len(span.token_ids) for span in batch.spans)
        assert num_tokens <= max(self.max_chunk, self.scheduler.used_rows), "the budget of a step"
        self.cache.compute(batch, non_finite)
        self.scheduler.commit(batch)
        for part in batch.parts:
            if part.span.logits is not Logits.NONE and (part.ends_prompt or not part.is_prompt):
                for generation in part.generation.answer.generations if part.is_prompt else [part.generation]:
                    generation.output.append(next(_tokens))
                    if len(generation.output) >= generation.request.ending.max_tokens:
                        self.scheduler.finish(generation)
        return batch

    def order(self, num_steps: int) -> list[list[Answer]]:
        """The answers of each of the next batches."""
        return [self.step().answers for _ in range(num_steps)]


def _prompt(num_tokens: int, first: int = 0) -> list[int]:
    return list(range(first, first + num_tokens))


def _num_tokens(batch: Batch) -> int:
    """Of its first part."""
    return len(batch.spans[0].token_ids)


@pytest.fixture
def grows_by_four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation_module, "GROWTH_TOKENS", 4)


def test_outputs_of_unknown_length_share_the_memory_as_they_grow(grows_by_four: None) -> None:
    run = _Run(max_rows=4, max_length=40, num_tokens=48)
    answers = [answer_of(_prompt(4, first), 36, is_open_ended=True) for first in (0, 100, 200)]
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
    run = _Run(max_rows=2, max_length=24, num_tokens=28, chunk=64)
    first, last = (answer_of(_prompt(4, start), 20, is_open_ended=True) for start in (0, 100))
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
        answer_of(_prompt(4), 20, rows=2, is_open_ended=True),
        answer_of(_prompt(4), 20, beams=2, is_open_ended=True),
        answer_of(_prompt(4), 20, start_token_id=0, is_open_ended=True),
        answer_of(_prompt(4), 20),
    ):
        assert answer.reserved_length == 24
    open_ended, other = (answer_of(_prompt(4), 20, is_open_ended=True) for _ in range(2))
    assert open_ended.reserved_length == 8
    _Run(rope_angles=RopeAngles(grows_beyond=8)).add(open_ended)
    assert open_ended.reserved_length == 24, "with angles that depend on length it cannot be computed again"
    _Run().add(other)
    assert other.reserved_length == 8


def test_nothing_to_do() -> None:
    assert _Run().scheduler.next_batch() is None


def test_a_prompt_is_computed_in_chunks_and_the_last_one_says_the_next_token() -> None:
    run, answer = _Run(chunk=4), answer_of(_prompt(10))
    run.add(answer)
    batches = [run.step() for _ in range(3)]
    parts = [part for batch in batches for part in batch.parts]
    assert [(part.span.start, len(part.span.token_ids)) for part in parts] == [(0, 4), (4, 4), (8, 2)]
    assert [part.span.logits for part in parts] == [Logits.NONE, Logits.NONE, Logits.LAST]
    assert [part.ends_prompt for part in parts] == [False, False, True]
    (decoded,) = run.step().spans
    assert (decoded.token_ids, decoded.start, decoded.logits) == (answer.generations[0].output[:1], 10, Logits.LAST)


def test_a_prompt_that_is_alone_is_computed_in_larger_chunks() -> None:
    run, answer = _Run(chunk=4, alone_chunk=16), answer_of(_prompt(20))
    run.add(answer)
    assert [_num_tokens(run.step()) for _ in range(2)] == [16, 4]


def test_a_larger_chunk_is_for_one_that_is_alone() -> None:
    for other in (answer_of([99], max_tokens=30), answer_of(_prompt(9, first=80))):
        run, answer = _Run(chunk=4, alone_chunk=16), answer_of(_prompt(20))
        run.add(other)
        run.step()  # it decodes, or its prompt is under way
        run.add(answer)
        lengths = [_num_tokens(batch) for batch in (run.step() for _ in range(12)) if batch.is_prompt]
        assert max(lengths) == 4
    run, answer = _Run(max_rows=1, chunk=4, alone_chunk=16), answer_of(_prompt(20))
    run.add(answer, answer_of([1]))
    assert run.scheduler.num_waiting == 1
    assert _num_tokens(run.step()) == 4


def test_chunks_grow_once_the_others_have_ended_and_shrink_when_one_comes() -> None:
    run, answer = _Run(chunk=2, alone_chunk=8, max_length=128), answer_of(_prompt(40))
    other = answer_of([99], max_tokens=1)
    run.add(other, answer)
    assert run.step().answers == [other]
    assert _num_tokens(run.step()) == 8
    run.add(answer_of([98], max_tokens=3))
    batches = [run.step() for _ in range(12)]
    lengths = [_num_tokens(batch) for batch in batches if batch.is_prompt and batch.answers == [answer]]
    assert lengths[0] == 2
    assert 8 in lengths[1:]


def test_a_short_prompt_that_comes_during_a_grown_chunk_has_its_token_within_two() -> None:
    run, long, short = _Run(chunk=2, alone_chunk=16), answer_of(_prompt(40)), answer_of(_prompt(2, first=50))
    run.add(long)
    run.step()
    run.add(short)
    assert run.step().answers == [short]
    assert len(short.generations[0].output) == 1


def test_a_chunk_that_is_smaller_alone_is_not() -> None:
    run, answer = _Run(chunk=4, alone_chunk=2), answer_of(_prompt(6))
    run.add(answer)
    assert _num_tokens(run.step()) == 4


def test_a_prompt_whose_log_probabilities_are_wanted_comes_in_chunks_of_its_own_with_all_logits() -> None:
    run = _Run(chunk=4)
    run.add(answer_of(_prompt(5), prompt_logprobs=0))
    assert [(len(span.token_ids), span.logits) for span in (*run.step().spans, *run.step().spans)] == [
        (3, Logits.ALL),
        (2, Logits.ALL),
    ]


def test_others_decode_between_the_chunks_of_a_long_prompt() -> None:
    run, first, second = _Run(chunk=2), answer_of([1]), answer_of(_prompt(6))
    run.add(first)
    run.step()
    run.add(second)
    assert run.order(6) == [[first], [second], [first], [second], [first], [second]]


@pytest.mark.parametrize("row", [0, 1])
def test_a_generation_that_is_computed_again_does_not_hold_up_the_others(row: int) -> None:
    run = _Run(chunk=4, rope_angles=RopeAngles(steps=(8,), recomputes=True))
    first, second = answer_of(_prompt(5), max_tokens=20), answer_of([1])
    for answer in (first, second) if row == 0 else (second, first):
        run.add(answer)
        while not answer.generations[0].output:
            run.step()
    assert first.generations[0].row == row
    batches = [run.step() for _ in range(9)]
    again = [number for number, batch in enumerate(batches) if batch.is_prompt]
    assert [batches[number].answers for number in again] == [[first], [first]]
    between = batches[again[0] + 1 : again[1]]
    assert [(batch.answers, batch.spans[0].row) for batch in between] == [([second], 0)]
    own = [batch for batch in batches[again[0] :] if first in batch.answers][:3]
    rows = [batch.answers.index(first) for batch in own]
    spans = [batch.spans[row] for batch, row in zip(own, rows, strict=True)]
    assert [(span.start, span.length, batch.is_prompt) for span, batch in zip(spans, own, strict=True)] == [
        (0, 9, True),
        (4, 9, True),
        (8, 9, False),
    ]


def test_a_short_prompt_that_comes_during_a_long_one_waits_for_no_more_than_a_chunk() -> None:
    run, long, short = _Run(chunk=2), answer_of(_prompt(20)), answer_of(_prompt(2, first=50))
    run.add(long)
    run.step()
    run.add(short)
    assert run.step().answers == [short]
    assert len(short.generations[0].output) == 1


def test_a_long_prompt_goes_on_however_many_short_ones_come() -> None:
    run, long = _Run(max_rows=64, chunk=2), answer_of(_prompt(8), max_tokens=1)
    run.add(long)
    run.step()
    for _ in range(6):
        run.add(answer_of(_prompt(2, first=50), max_tokens=1))
        run.step()
    assert long.generations[0].is_finished


def _lengths(batch: Batch) -> dict[Answer, int]:
    """Tokens of each answer's first part."""
    return {part.generation.answer: len(part.span.token_ids) for part in batch.parts[::-1]}


def test_prompts_that_come_together_are_computed_together_and_decode_beside_one_that_comes_later() -> None:
    run = _Run(chunk=32, packs_spans=True)
    first, second, later = answer_of(_prompt(9)), answer_of(_prompt(5, first=50)), answer_of(_prompt(12, first=80))
    run.add(first, second)
    assert _lengths(run.step()) == {first: 9, second: 5}
    assert _lengths(run.step()) == {first: 1, second: 1}
    run.add(later)
    assert _lengths(run.step()) == {first: 1, second: 1, later: 12}
    assert [len(each.generations[0].output) for each in (first, second, later)] == [3, 3, 1]


def test_a_chunk_is_divided_among_tokens_that_decode_and_prompts() -> None:
    run = _Run(chunk=8, packs_spans=True)
    decoding, long, short = answer_of([1], 20), answer_of(_prompt(20, first=50)), answer_of(_prompt(3, first=100))
    run.add(decoding)
    run.step()
    run.add(long, short)
    assert _lengths(run.step()) == {decoding: 1, short: 3, long: 4}
    assert _lengths(run.step()) == {decoding: 1, short: 1, long: 6}


def test_generations_that_would_take_most_of_a_chunk_take_turns_with_prompts() -> None:
    run = _Run(max_rows=6, chunk=4, packs_spans=True)
    wide, prompt = answer_of([1], 20, rows=3), answer_of(_prompt(8, first=50))
    run.add(wide)
    run.step()
    run.add(prompt)
    assert run.order(4) == [[prompt], [wide], [prompt], [wide, prompt]]


def test_a_prompt_waits_for_a_beginning_that_another_one_computes() -> None:
    run = _Run(chunk=64, packs_spans=True)
    shared = _prompt(kv_rows.MIN_SHARED_TOKENS)
    first, second, other = answer_of([*shared, 100]), answer_of([*shared, 101, 102]), answer_of(_prompt(9, first=200))
    run.add(first, second, other)
    assert _lengths(run.step()) == {first: len(shared) + 1, other: 9}
    assert _lengths(run.step()) == {first: 1, other: 1, second: 2}
    assert second.cached_prompt_tokens == len(shared)


def test_all_logits_of_a_prompt_are_of_few_tokens_beside_other_prompts() -> None:
    run = _Run(chunk=64, packs_spans=True)
    scored = [answer_of(_prompt(5, first=first), prompt_logprobs=0) for first in (0, 50)]
    plain = answer_of(_prompt(6, first=100))
    run.add(*scored, plain)
    assert _lengths(run.step()) == {scored[0]: 3, plain: 6}
    assert _lengths(run.step()) == {plain: 1, scored[0]: 2, scored[1]: 1}


def test_beams_decode_beside_a_prompt_and_a_generation_that_is_computed_again() -> None:
    run = _Run(max_rows=5, chunk=16, rope_angles=RopeAngles(steps=(8,), recomputes=True), packs_spans=True)
    beams, crossing, prompt = answer_of([1, 2], beams=2), answer_of(_prompt(7), 20), answer_of(_prompt(4, first=50))
    run.add(beams, crossing)
    run.step()
    run.add(prompt)
    assert _lengths(run.step()) == {beams: 1, crossing: 1, prompt: 4}
    batch = run.step()
    (again,) = (part for part in batch.parts if part.generation.answer is crossing)
    assert (again.is_prompt, again.span.start, again.span.stop, again.span.length) == (True, 0, 8, 9)
    assert {part.generation.answer for part in batch.parts} == {beams, crossing, prompt}
    assert _lengths(run.step()) == {beams: 1, crossing: 1, prompt: 1}


def test_requests_start_by_priority_and_then_in_the_order_they_came_and_never_more_than_fit() -> None:
    run = _Run(max_rows=2, max_waiting=8)
    answers = [answer_of([9, number], max_tokens=2, priority=number // 3) for number in range(5)]
    started: list[Answer] = []
    run.add(*answers)
    while (batch := run.step()) and run.scheduler.num_running:
        assert run.scheduler.num_running <= 2
        started += [answer for answer in batch.answers if answer not in started]
    # the first was admitted at once
    assert started == [answers[each] for each in (0, 1, 3, 4, 2)]


def test_a_request_takes_a_row_for_each_of_its_generations_or_beams() -> None:
    run = _Run(max_rows=4)
    wide, beams, narrow = answer_of([1, 2], rows=3), answer_of([3, 4], beams=2), answer_of([5])
    run.add(wide, beams, narrow)
    assert (run.scheduler.used_rows, run.scheduler.num_running, run.scheduler.num_waiting) == (3, 1, 2)
    assert run.step().generations == wide.generations[:1]
    assert run.step().generations == wide.generations
    for generation in wide.generations[:2]:
        run.scheduler.finish(generation)
    assert (run.scheduler.used_rows, run.scheduler.num_running) == (4, 3)


def test_a_large_request_is_not_overtaken_by_small_ones_that_came_later() -> None:
    run = _Run(max_rows=2)
    running, large, small = answer_of([1], max_tokens=3), answer_of([2], rows=2), answer_of([3])
    run.add(running, large, small)
    assert run.order(3) == [[running]] * 3
    assert run.step().answers == [large]
    assert run.scheduler.num_waiting == 1


def test_those_behind_a_large_request_start_when_it_is_given_up() -> None:
    run = _Run(max_rows=2)
    large, small = answer_of([2], rows=2), answer_of([3])
    run.add(answer_of([1]), large, small)
    run.scheduler.remove(large)
    assert (run.scheduler.num_running, run.scheduler.num_waiting) == (2, 0)


def test_a_prompt_whose_log_probabilities_are_wanted_is_computed_whole() -> None:
    run, prompt = _Run(chunk=64, alone_chunk=64), _prompt(kv_rows.MIN_SHARED_TOKENS + 4)
    shared = [answer_of(prompt, max_tokens=1, **more) for more in ({}, {}, {"prompt_logprobs": 1})]
    run.add(*shared)
    while run.scheduler.num_running:
        run.step()
    assert [answer.cached_prompt_tokens for answer in shared] == [0, len(prompt) - 1, 0]


def test_a_full_queue_refuses_and_what_fits_does_not_wait() -> None:
    run = _Run(max_rows=1, max_waiting=0)
    run.add(answer_of([1]))
    with pytest.raises(QueueFullError):
        run.add(answer_of([2]))
    assert run.scheduler.num_waiting == 0


def test_what_can_never_fit_is_refused() -> None:
    run = _Run(max_rows=2, max_length=64, num_tokens=100)
    with pytest.raises(NeverFitsError):
        run.add(answer_of([1], rows=2, max_tokens=60))


def test_removing_twice_or_a_stranger_does_nothing() -> None:
    run, answer, waiting = _Run(max_rows=1), answer_of([1]), answer_of([2])
    run.add(answer, waiting)
    for each in (waiting, answer, answer, answer_of([3])):
        run.scheduler.remove(each)
    assert (run.scheduler.used_rows, run.scheduler.used_kv_bytes, run.scheduler.num_waiting) == (0, 0, 0)
    assert run.scheduler.next_batch() is None


@pytest.mark.parametrize("is_decoding", [False, True])
def test_a_spoiled_row_is_made_zeros(is_decoding: bool) -> None:
    run, answer, other = _Run(), answer_of(_prompt(6), rows=2), answer_of(_prompt(3, first=40))
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
    run, answer = _Run(alone_chunk=alone_chunk), answer_of(_prompt(12))
    run.add(answer)
    run.step(non_finite=answer)
    run.scheduler.remove(answer)
    assert not any(NAN in row for row in run.cache.cells)


@settings(deadline=None, max_examples=150)
@given(
    data=st.data(),
    max_rows=st.integers(1, 6),
    seed=st.integers(0, 2**32),
    share=st.floats(0.3, 1),
    chunk=st.sampled_from([None, 4, 9, 30]),
    rope_angles=st.sampled_from(
        [ALL_ALIKE, RopeAngles(steps=(8,)), RopeAngles(steps=(8,), recomputes=True), RopeAngles(grows_beyond=8)]
    ),
)
def test_whatever_comes_and_goes_rows_are_right_budgets_hold_and_everyone_ends(
    data: st.DataObject,
    max_rows: int,
    seed: int,
    share: float,
    chunk: int | None,
    rope_angles: RopeAngles,
    monkeypatch_min_shared: None,
) -> None:
    chance = random.Random(seed)
    max_length = 24
    run = _Run(
        max_rows,
        max_length,
        max(2, int(max_rows * max_length * share)),
        max_waiting=50,
        chunk=chunk or 4,
        rope_angles=rope_angles,
        packs_spans=chunk is not None,
    )
    answers: list[Answer] = []
    for action in data.draw(
        st.lists(st.sampled_from(["add", "add", "step", "step", "step", "end", "fork"]), max_size=60)
    ):
        _act(run, answers, action, chance)
        _check(run)
    # an output that grows may be computed again, once for each time that another one grows
    for _ in range(20 * sum(answer.request.max_length + 2 + 3 * len(answer.generations) for answer in answers)):
        if run.scheduler.num_running + run.scheduler.num_waiting:
            run.step()
            _check(run)
    assert all(generation.is_finished for answer in answers for generation in answer.generations)
    assert (run.scheduler.num_waiting, run.scheduler.used_rows) == (0, 0)


@pytest.fixture(scope="module")
def monkeypatch_min_shared() -> Iterator[None]:
    """Shares short beginnings, too, and lets outputs grow by little."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kv_rows, "MIN_SHARED_TOKENS", 2)
        patch.setattr(prompts_module, "MIN_SHARED_TOKENS", 2)
        patch.setattr(generation_module, "GROWTH_TOKENS", 3)
        yield


def _act(run: _Run, answers: list[Answer], action: str, chance: random.Random) -> None:
    scheduler = run.scheduler
    alive = [answer for answer in answers if not answer.is_finished]
    if action == "add":
        prompt = _prompt(chance.randint(1, 9), first=chance.choice([0, 0, 100]))
        rows, beams = chance.choice([(1, 0), (1, 0), (3, 0), (1, 2), (1, 4)])
        more = {"priority": chance.choice([0, 0, 1]), "is_open_ended": chance.random() < 0.5}
        answer = answer_of(prompt, chance.randint(1, 9), rows, beams, **more)
        try:
            scheduler.add(answer)
            answers.append(answer)
        except NeverFitsError:
            assert scheduler.budget.shape(answer.request.num_rows, answer.request.max_length) is None
    elif action == "end" and alive:
        answer = chance.choice(alive)
        decoding = [each for each in answer.generations if each.output and not each.is_finished]
        if decoding and answer.request.beam is None and chance.random() < 0.5:
            scheduler.finish(chance.choice(decoding))
        else:
            scheduler.remove(answer, non_finite=chance.random() < 0.3)
            for generation in answer.generations:
                generation.is_finished = True
    elif action == "fork":
        searches = [
            answer
            for answer in alive
            if answer.request.beam
            and all(each.output and each.num_computed >= each.num_to_compute for each in answer.generations)
        ]
        if searches:
            source, target = chance.sample(chance.choice(searches).generations, 2)
            pairs = zip(text_of(source), text_of(target), strict=True)
            start = next((place for place, (one, other) in enumerate(pairs) if one != other), 0)
            scheduler.fork(source, target, start)
            target.output[:-1] = source.output[:-1]
    elif scheduler.num_running + scheduler.num_waiting:
        run.step()


def _check(run: _Run) -> None:
    scheduler, budget = run.scheduler, run.cache.budget
    assert scheduler.used_rows <= budget.max_rows
    assert scheduler.used_kv_bytes <= budget.num_bytes
    decoding = scheduler._rows.decoding()
    assert [generation.row for generation in decoding] == list(range(len(decoding)))
    for generation in decoding:
        run.cache.check(generation)


@pytest.mark.parametrize("module", ["scheduler", "kv_rows", "kv_budget"])
def test_the_scheduler_needs_no_torch(module: str) -> None:
    """In a fresh interpreter, so that what it imports through others is found too."""
    code = (
        f"import sys, gpu_service.engine.{module}; "
        "print(sorted({'torch', 'transformers', 'grpc'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout.strip() == b"[]"
