import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_service.engine import generation as generation_module
from gpu_service.engine import kv_rows
from gpu_service.engine.batches import prompts as prompts_module
from gpu_service.engine.generation import Answer
from gpu_service.errors import NeverFitsError
from gpu_service.model_runner.rope_angles import ALL_ALIKE, RopeAngles
from tests.support.model_of_cache import answer_of, text_of
from tests.support.scheduler_runs import SchedulerRun, prompt_of


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
    run = SchedulerRun(
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


def _act(run: SchedulerRun, answers: list[Answer], action: str, chance: random.Random) -> None:
    scheduler = run.scheduler
    alive = [answer for answer in answers if not answer.is_finished]
    if action == "add":
        prompt = prompt_of(chance.randint(1, 9), first=chance.choice([0, 0, 100]))
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


def _check(run: SchedulerRun) -> None:
    scheduler, budget = run.scheduler, run.cache.budget
    assert scheduler.used_rows <= budget.max_rows
    assert scheduler.used_kv_bytes <= budget.num_bytes
    decoding = scheduler._rows.decoding()
    assert [generation.row for generation in decoding] == list(range(len(decoding)))
    for generation in decoding:
        run.cache.check(generation)
