import pytest

from gpu_service.engine import kv_rows
from gpu_service.model_runner.forward_input import Logits
from gpu_service.model_runner.rope_angles import RopeAngles
from tests.support.model_of_cache import answer_of
from tests.support.scheduler_runs import SchedulerRun, lengths_of, num_tokens_of, prompt_of


def test_a_prompt_is_computed_in_chunks_and_the_last_one_says_the_next_token() -> None:
    run, answer = SchedulerRun(chunk=4), answer_of(prompt_of(10))
    run.add(answer)
    batches = [run.step() for _ in range(3)]
    parts = [part for batch in batches for part in batch.parts]
    assert [(part.span.start, len(part.span.token_ids)) for part in parts] == [(0, 4), (4, 4), (8, 2)]
    assert [part.span.logits for part in parts] == [Logits.NONE, Logits.NONE, Logits.LAST]
    assert [part.ends_prompt for part in parts] == [False, False, True]
    (decoded,) = run.step().spans
    assert (decoded.token_ids, decoded.start, decoded.logits) == (answer.generations[0].output[:1], 10, Logits.LAST)


def test_a_prompt_that_is_alone_is_computed_in_larger_chunks() -> None:
    run, answer = SchedulerRun(chunk=4, alone_chunk=16), answer_of(prompt_of(20))
    run.add(answer)
    assert [num_tokens_of(run.step()) for _ in range(2)] == [16, 4]


def test_a_larger_chunk_is_for_one_that_is_alone() -> None:
    for other in (answer_of([99], max_tokens=30), answer_of(prompt_of(9, first=80))):
        run, answer = SchedulerRun(chunk=4, alone_chunk=16), answer_of(prompt_of(20))
        run.add(other)
        run.step()  # it decodes, or its prompt is under way
        run.add(answer)
        lengths = [num_tokens_of(batch) for batch in (run.step() for _ in range(12)) if batch.is_prompt]
        assert max(lengths) == 4
    run, answer = SchedulerRun(max_rows=1, chunk=4, alone_chunk=16), answer_of(prompt_of(20))
    run.add(answer, answer_of([1]))
    assert run.scheduler.num_waiting == 1
    assert num_tokens_of(run.step()) == 4


def test_chunks_grow_once_the_others_have_ended_and_shrink_when_one_comes() -> None:
    run, answer = SchedulerRun(chunk=2, alone_chunk=8, max_length=128), answer_of(prompt_of(40))
    other = answer_of([99], max_tokens=1)
    run.add(other, answer)
    assert run.step().answers == [other]
    assert num_tokens_of(run.step()) == 8
    run.add(answer_of([98], max_tokens=3))
    batches = [run.step() for _ in range(12)]
    lengths = [num_tokens_of(batch) for batch in batches if batch.is_prompt and batch.answers == [answer]]
    assert lengths[0] == 2
    assert 8 in lengths[1:]


def test_a_short_prompt_that_comes_during_a_grown_chunk_has_its_token_within_two() -> None:
    run, long = SchedulerRun(chunk=2, alone_chunk=16), answer_of(prompt_of(40))
    short = answer_of(prompt_of(2, first=50))
    run.add(long)
    run.step()
    run.add(short)
    assert run.step().answers == [short]
    assert len(short.generations[0].output) == 1


def test_a_chunk_that_is_smaller_alone_is_not() -> None:
    run, answer = SchedulerRun(chunk=4, alone_chunk=2), answer_of(prompt_of(6))
    run.add(answer)
    assert num_tokens_of(run.step()) == 4


def test_a_prompt_whose_log_probabilities_are_wanted_comes_in_chunks_of_its_own_with_all_logits() -> None:
    run = SchedulerRun(chunk=4)
    run.add(answer_of(prompt_of(5), prompt_logprobs=0))
    assert [(len(span.token_ids), span.logits) for span in (*run.step().spans, *run.step().spans)] == [
        (3, Logits.ALL),
        (2, Logits.ALL),
    ]


def test_others_decode_between_the_chunks_of_a_long_prompt() -> None:
    run, first, second = SchedulerRun(chunk=2), answer_of([1]), answer_of(prompt_of(6))
    run.add(first)
    run.step()
    run.add(second)
    assert run.order(6) == [[first], [second], [first], [second], [first], [second]]


@pytest.mark.parametrize("row", [0, 1])
def test_a_generation_that_is_computed_again_does_not_hold_up_the_others(row: int) -> None:
    run = SchedulerRun(chunk=4, rope_angles=RopeAngles(steps=(8,), recomputes=True))
    first, second = answer_of(prompt_of(5), max_tokens=20), answer_of([1])
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
    run, long, short = SchedulerRun(chunk=2), answer_of(prompt_of(20)), answer_of(prompt_of(2, first=50))
    run.add(long)
    run.step()
    run.add(short)
    assert run.step().answers == [short]
    assert len(short.generations[0].output) == 1


def test_a_long_prompt_goes_on_however_many_short_ones_come() -> None:
    run, long = SchedulerRun(max_rows=64, chunk=2), answer_of(prompt_of(8), max_tokens=1)
    run.add(long)
    run.step()
    for _ in range(6):
        run.add(answer_of(prompt_of(2, first=50), max_tokens=1))
        run.step()
    assert long.generations[0].is_finished


def test_prompts_that_come_together_are_computed_together_and_decode_beside_one_that_comes_later() -> None:
    run = SchedulerRun(chunk=32, packs_spans=True)
    first, second = answer_of(prompt_of(9)), answer_of(prompt_of(5, first=50))
    later = answer_of(prompt_of(12, first=80))
    run.add(first, second)
    assert lengths_of(run.step()) == {first: 9, second: 5}
    assert lengths_of(run.step()) == {first: 1, second: 1}
    run.add(later)
    assert lengths_of(run.step()) == {first: 1, second: 1, later: 12}
    assert [len(each.generations[0].output) for each in (first, second, later)] == [3, 3, 1]


def test_a_chunk_is_divided_among_tokens_that_decode_and_prompts() -> None:
    run = SchedulerRun(chunk=8, packs_spans=True)
    decoding, long, short = answer_of([1], 20), answer_of(prompt_of(20, first=50)), answer_of(prompt_of(3, first=100))
    run.add(decoding)
    run.step()
    run.add(long, short)
    assert lengths_of(run.step()) == {decoding: 1, short: 3, long: 4}
    assert lengths_of(run.step()) == {decoding: 1, short: 1, long: 6}


def test_generations_that_would_take_most_of_a_chunk_take_turns_with_prompts() -> None:
    run = SchedulerRun(max_rows=6, chunk=4, packs_spans=True)
    wide, prompt = answer_of([1], 20, rows=3), answer_of(prompt_of(8, first=50))
    run.add(wide)
    run.step()
    run.add(prompt)
    assert run.order(4) == [[prompt], [wide], [prompt], [wide, prompt]]


def test_a_prompt_waits_for_a_beginning_that_another_one_computes() -> None:
    run = SchedulerRun(chunk=64, packs_spans=True)
    shared = prompt_of(kv_rows.MIN_SHARED_TOKENS)
    first, second, other = answer_of([*shared, 100]), answer_of([*shared, 101, 102]), answer_of(prompt_of(9, first=200))
    run.add(first, second, other)
    assert lengths_of(run.step()) == {first: len(shared) + 1, other: 9}
    assert lengths_of(run.step()) == {first: 1, other: 1, second: 2}
    assert second.cached_prompt_tokens == len(shared)


def test_all_logits_of_a_prompt_are_of_few_tokens_beside_other_prompts() -> None:
    run = SchedulerRun(chunk=64, packs_spans=True)
    scored = [answer_of(prompt_of(5, first=first), prompt_logprobs=0) for first in (0, 50)]
    plain = answer_of(prompt_of(6, first=100))
    run.add(*scored, plain)
    assert lengths_of(run.step()) == {scored[0]: 3, plain: 6}
    assert lengths_of(run.step()) == {plain: 1, scored[0]: 2, scored[1]: 1}


def test_beams_decode_beside_a_prompt_and_a_generation_that_is_computed_again() -> None:
    run = SchedulerRun(max_rows=5, chunk=16, rope_angles=RopeAngles(steps=(8,), recomputes=True), packs_spans=True)
    beams, crossing, prompt = answer_of([1, 2], beams=2), answer_of(prompt_of(7), 20), answer_of(prompt_of(4, first=50))
    run.add(beams, crossing)
    run.step()
    run.add(prompt)
    assert lengths_of(run.step()) == {beams: 1, crossing: 1, prompt: 4}
    batch = run.step()
    (again,) = (part for part in batch.parts if part.generation.answer is crossing)
    assert (again.is_prompt, again.span.start, again.span.stop, again.span.length) == (True, 0, 8, 9)
    assert {part.generation.answer for part in batch.parts} == {beams, crossing, prompt}
    assert lengths_of(run.step()) == {beams: 1, crossing: 1, prompt: 1}
