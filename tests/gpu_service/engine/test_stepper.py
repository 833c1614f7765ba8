"""What a step does to each request, and that a failure in one request affects no other."""

from typing import Any, NoReturn

import pytest
import torch

from fiddler import logs
from gpu_service.engine.events import Best, Event, Failed, Finished, Progress, Prompt, Token
from gpu_service.engine.request_ids import RequestIds
from gpu_service.engine.stepper import Stepper
from gpu_service.errors import NonFiniteError
from gpu_service.sampling.outputs import FinishReason
from gpu_service.sampling.parameters import BeamParameters, SamplingParameters
from tests.support.counting_model import VOCAB, CountingModel, Reader


class _Steps:
    """A stepper with a CountingModel."""

    def __init__(self, max_slots: int = 8, chunk: int = 8) -> None:
        self.model = CountingModel()
        self.scheduler = self.model.scheduler(max_slots, max_waiting=64, chunk=chunk)
        self.failures: list[Exception] = []
        self.ids = RequestIds()
        self.stepper = Stepper(
            self.model,  # type: ignore[arg-type]
            self.scheduler,
            ids=self.ids,
            on_failure=self.failures.append,
        )

    def run(self, *readers: Reader) -> None:
        """Steps until all have ended."""
        for reader in readers:
            self.stepper.add(reader.answer)
        while self.stepper.step():
            pass
        assert (self.scheduler.num_running, self.scheduler.used_rows) == (0, 0)


@pytest.fixture
def steps() -> _Steps:
    return _Steps()


def _tokens(events: list[Event], index: int = 0) -> list[int]:
    return [event.token_id for event in events if isinstance(event, Token) and event.index == index]


def _ends(events: list[Event]) -> list[Finished]:
    return [event for event in events if isinstance(event, Finished)]


@pytest.mark.parametrize(
    ("limits", "reason", "last"),
    [
        ({"eos": 7}, FinishReason.EOS, 7),
        ({"stop_ids": frozenset([6])}, FinishReason.STOP, 6),
        ({"max_tokens": 1}, FinishReason.LENGTH, 5),
        ({"eos": 7, "max_tokens": 3}, FinishReason.EOS, 7),
    ],
)
def test_what_ends_a_generation_is_among_its_tokens(
    steps: _Steps, limits: dict[str, Any], reason: FinishReason, last: int
) -> None:
    reader = Reader([4], **limits)
    steps.run(reader)
    tokens, end = reader.read()
    assert tokens[-1] == last
    assert isinstance(end, Finished)
    assert end.reason is reason
    assert end.stop_token_id == (None if reason is FinishReason.LENGTH else last)


class _StopAt:
    """Stands for StopStrings and its matchers. It raises the error once, at the token."""

    def __init__(self, token: int, error: BaseException | None = None) -> None:
        self._token, self._error = token, error

    def matcher(self) -> "_StopAt":
        return self

    def add(self, token_id: int) -> str | None:
        if token_id == self._token and self._error:
            error, self._error = self._error, None
            raise error
        return "stop!" if token_id == self._token else None


def test_a_stop_text_ends_a_generation_and_is_told(steps: _Steps) -> None:
    reader = Reader([4], stop=_StopAt(7))
    steps.run(reader)
    tokens, end = reader.read()
    assert isinstance(end, Finished)
    assert (tokens, end.reason, end.stop) == ([5, 6, 7], FinishReason.STOP, "stop!")
    assert end.stop_token_id is None, "a stop text ended it"


def test_how_far_a_prompt_is_computed_is_told_before_its_first_token() -> None:
    steps = _Steps(chunk=8)
    reader, silent = Reader(list(range(20)), reports_progress=True), Reader(list(range(20, 40)))
    steps.run(reader, silent)
    events = reader.all()
    assert events[:3] == [Progress(8, 0), Progress(16, 0), Progress(20, 0)]
    assert isinstance(events[3], Token)
    assert not any(isinstance(event, Progress) for event in [*events[3:], *silent.all()])


def test_everything_logged_in_a_step_names_its_requests(steps: _Steps) -> None:
    seen: list[list[str]] = []
    compute = steps.model.compute

    def noting(spans: Any) -> Any:
        seen.append(logs.requests_under_way())
        return compute(spans)

    steps.model.compute = noting  # type: ignore[method-assign]
    steps.run(Reader([4], max_tokens=4, request_id="a"), Reader([50], max_tokens=2, request_id="b"))
    assert ["a"] in seen
    assert ["a", "b"] in seen
    assert logs.requests_under_way() == []


def test_generations_of_one_request_share_its_prompt_and_end_one_by_one(steps: _Steps) -> None:
    sampling = SamplingParameters(temperature=3.0, seed=1)
    reader = Reader([1, 2, 3], max_tokens=12, eos=-1, n=3, sampling=sampling, stop_ids=frozenset(range(0, VOCAB, 3)))
    steps.run(reader)
    events = reader.all()
    assert sorted(end.index for end in _ends(events)) == [0, 1, 2]
    alone = []
    for index in range(3):
        sampling = SamplingParameters(temperature=3.0, seed=1 + index)
        single = Reader([1, 2, 3], max_tokens=12, sampling=sampling, stop_ids=frozenset(range(0, VOCAB, 3)))
        steps.run(single)
        alone.append(single.read()[0])
    assert [_tokens(events, index) for index in range(3)] == alone
    assert len({len(tokens) for tokens in alone}) > 1  # so that they end one by one
    for end in _ends(events):
        assert end.completion_tokens == len(alone[end.index])
        after = events[events.index(end) + 1 :]
        assert not any(isinstance(event, Token) and event.index == end.index for event in after)


def test_log_probabilities_come_with_tokens_where_they_were_asked_for(steps: _Steps) -> None:
    with_them, without = Reader([4], logprobs=2), Reader([4])
    steps.run(with_them, without)
    for event in with_them.all()[:-1]:
        assert isinstance(event, Token)
        assert event.logprobs is not None
        assert event.logprobs.logprob is not None
        (first, first_logprob), (second, second_logprob) = event.logprobs.top
        assert (first, second) == (event.token_id, event.token_id + 1)
        assert first_logprob == event.logprobs.logprob
        assert second_logprob == pytest.approx(event.logprobs.logprob - 2)
    assert all(event.logprobs is None for event in without.all() if isinstance(event, Token))


def test_the_prompts_log_probabilities_come_once_and_before_its_tokens() -> None:
    steps = _Steps(chunk=2)
    reader = Reader([4, 5, 9, 10, 11], n=2, prompt_logprobs=1, sampling=SamplingParameters(temperature=1.0))
    steps.run(reader)
    first, *others = reader.all()
    assert isinstance(first, Prompt)
    assert [entry.token_id for entry in first.logprobs] == [4, 5, 9, 10, 11]
    values = [entry.logprob for entry in first.logprobs]
    assert values[0] is None
    assert [value is not None and value > -1 for value in values[1:]] == [True, False, True, True]
    assert [entry.top[0][0] for entry in first.logprobs[1:]] == [5, 6, 10, 11]
    assert not any(isinstance(event, Prompt) for event in others)
    greedy = Reader([4, 5, 9, 10, 15, 20], max_tokens=2, prompt_logprobs=0)
    steps.run(greedy)
    assert greedy.read()[0] == [21, 22]


def test_beams_come_at_the_end_best_first(steps: _Steps) -> None:
    reader = Reader([4], max_tokens=3, beam=BeamParameters(4, num_return_sequences=3))
    steps.run(reader)
    events = reader.all()
    assert all(isinstance(event, Finished) for event in events)
    ends = _ends(events)
    assert [end.index for end in ends] == [0, 1, 2]
    assert ends[0].token_ids == (5, 6, 7)
    scores = [end.score or 0 for end in ends]
    assert scores == sorted(scores, reverse=True)
    assert {end.completion_tokens for end in ends} == {3}


def test_the_best_beam_so_far_is_streamed_where_it_was_asked_for(steps: _Steps) -> None:
    reader = Reader([4], max_tokens=3, beam=BeamParameters(2, stream_best=True))
    steps.run(reader)
    best = [event.token_ids for event in reader.all() if isinstance(event, Best)]
    assert best == [(5,), (5, 6)]


@pytest.mark.parametrize("num_steps", [0, 2])
def test_a_cancelled_search_brings_its_best_so_far(steps: _Steps, num_steps: int) -> None:
    reader = Reader([4], max_tokens=9, beam=BeamParameters(3, num_return_sequences=2))
    steps.stepper.add(reader.answer)
    for _ in range(num_steps):
        steps.stepper.step()
    steps.stepper.cancel(reader.request, FinishReason.CANCELLED)
    ends = _ends(reader.all())
    assert [end.reason for end in ends] == [FinishReason.CANCELLED] * 2
    assert ends[0].token_ids == (5, 6)[:num_steps]
    assert steps.scheduler.used_rows == 0


def test_a_failing_step_fails_its_requests_and_the_others_go_on(steps: _Steps) -> None:
    first, second = Reader([4]), Reader([4], max_tokens=2)
    steps.stepper.add(first.answer)
    steps.model.error = RuntimeError("no such weather")
    steps.stepper.step()
    assert first.read() == ([], Failed(steps.model.error))
    assert steps.failures == [steps.model.error]
    steps.model.error = None
    steps.run(second)
    assert second.read()[0] == [5, 6]


def test_what_a_failed_step_may_have_left_is_wiped_away(steps: _Steps) -> None:
    reader = Reader([4])
    steps.stepper.add(reader.answer)
    steps.stepper.step()
    steps.model.error = RuntimeError("no such weather")
    steps.stepper.step()
    assert steps.model.cache.cleared == [0]


class _Panic(BaseException):
    """As libraries written in Rust raise it."""


def test_a_panic_fails_what_it_is_about_as_an_exception_does(steps: _Steps) -> None:
    broken, whole, unlucky = Reader([20], stop=_StopAt(22, _Panic("in a stop text"))), Reader([4]), Reader([4])
    steps.run(broken, whole)
    assert isinstance(whole.read()[1], Finished)
    end = broken.all()[-1]
    assert isinstance(end, Failed)
    assert str(end.error) == "_Panic: in a stop text"
    steps.stepper.add(unlucky.answer)
    steps.model.error = _Panic("in a step")
    steps.stepper.step()
    assert isinstance(unlucky.read()[1], Failed)


def test_nothing_follows_a_failure_not_even_of_the_requests_other_generations(steps: _Steps) -> None:
    sampling = SamplingParameters(temperature=0.01, seed=1)
    reader = Reader([4], n=3, sampling=sampling, stop=_StopAt(6, RuntimeError("a stop text that breaks")))
    steps.run(reader)
    events = reader.all()
    assert isinstance(events[-1], Failed)
    assert [event for event in events if not isinstance(event, Token)] == [events[-1]]


@pytest.mark.parametrize("kind", ["sampled", "generations", "beams"])
@pytest.mark.parametrize("in_prompt", [True, False])
@pytest.mark.parametrize("how", ["nan_after", "non_finite_after"])
def test_what_is_not_a_number_fails_its_request_alone_and_is_wiped_away(kind: str, in_prompt: bool, how: str) -> None:
    steps = _Steps()
    kinds: dict[str, dict[str, Any]] = {
        "sampled": {},
        "generations": {"n": 3},
        "beams": {"beam": BeamParameters(3)},
    }
    more = kinds[kind]
    healthy = [Reader([40]), Reader([40], beam=BeamParameters(2)), Reader([50], logprobs=0)]
    failing = Reader([20], max_tokens=9, **more)
    setattr(steps.model, how, 20 if in_prompt else 22)
    steps.run(*healthy, failing)
    end = failing.all()[-1]
    assert isinstance(end, Failed)
    assert isinstance(end.error, NonFiniteError)
    assert "not finite" in str(end.error)
    assert len(steps.model.cache.cleared) == failing.request.num_rows
    assert healthy[0].read()[0] == [41, 42, 43, 44, 45]
    assert _ends(healthy[1].all())[0].token_ids == (41, 42, 43, 44, 45)
    assert healthy[2].read()[0] == [51, 52, 53, 54, 55]
    assert not steps.failures  # no step failed


class _Broken:
    """A sampler and a search that raise when they are called."""

    changes_logits = True
    generator = None

    def process(self, *_: object) -> torch.Tensor:
        raise RuntimeError("a sampler that breaks")

    def step(self, *_: object) -> None:
        raise RuntimeError("a search that breaks")


@pytest.mark.parametrize("part", ["sampler", "matcher", "beams"])
def test_what_breaks_in_a_requests_own_part_fails_that_request_alone(steps: _Steps, part: str) -> None:
    seeded = SamplingParameters(temperature=2.0, seed=3)
    expected = Reader([4], sampling=seeded)
    steps.run(expected)
    broken = Reader(
        [20],
        stop=_StopAt(22, RuntimeError("a stop text that breaks")) if part == "matcher" else None,
        beam=BeamParameters(2) if part == "beams" else None,
    )
    healthy = [Reader([40]), Reader([4], sampling=seeded), Reader([60], beam=BeamParameters(2))]
    for reader in (healthy[0], broken, *healthy[1:]):
        steps.stepper.add(reader.answer)
    steps.stepper.step()
    if part == "sampler":
        broken.answer.generations[0].sampler = _Broken()  # type: ignore[assignment]
    if part == "beams":
        broken.answer.search = _Broken()  # type: ignore[assignment]
    steps.run()
    end = broken.all()[-1]
    assert isinstance(end, Failed)
    assert "that breaks" in str(end.error)
    assert healthy[0].read()[0] == [41, 42, 43, 44, 45]
    assert healthy[1].read()[0] == expected.read()[0]
    assert _ends(healthy[2].all())[0].token_ids == (61, 62, 63, 64, 65)


class _NoMatcher:
    """Stands for stop texts whose matcher cannot be created."""

    def matcher(self) -> None:
        raise RuntimeError("stop texts that break")


@pytest.mark.parametrize("fields", [{"sampling": SamplingParameters(temperature=-1.0)}, {"stop": _NoMatcher()}])
def test_a_request_that_cannot_be_begun_fails_alone(steps: _Steps, fields: dict[str, Any]) -> None:
    refused, healthy = Reader([4], request_id="mine", **fields), Reader([4])
    steps.ids.add(refused.request)
    steps.run(refused, healthy)
    assert isinstance(refused.read()[1], Failed)
    assert steps.ids.abort("mine") is None
    assert healthy.read()[0] == [5, 6, 7, 8, 9]


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_a_search_whose_results_break_ends_all_the_same(steps: _Steps, is_cancelled: bool) -> None:
    broken, healthy = Reader([4], max_tokens=2, beam=BeamParameters(2)), Reader([4])
    steps.stepper.add(broken.answer)
    assert broken.answer.search is not None

    def no_results() -> NoReturn:
        raise RuntimeError("results that break")

    broken.answer.search.results = no_results  # type: ignore[method-assign]
    if is_cancelled:
        steps.stepper.cancel(broken.request, FinishReason.CANCELLED)
    steps.run(healthy)
    (end,) = broken.all()
    assert isinstance(end, Failed)
    assert healthy.read()[0] == [5, 6, 7, 8, 9]


def test_what_was_aborted_ends_as_cancelled_even_where_it_ends_in_that_very_step(steps: _Steps) -> None:
    reader = Reader([4], max_tokens=1, request_id="mine")
    steps.ids.add(reader.request)
    steps.stepper.add(reader.answer)
    assert steps.ids.abort("mine") is reader.request
    steps.stepper.step()
    end = reader.read()[1]
    assert isinstance(end, Finished)
    assert end.reason is FinishReason.CANCELLED


def test_tokens_of_a_prompt_that_were_there_are_counted(steps: _Steps) -> None:
    prompt = list(range(30))
    for cached in (0, 29):
        reader = Reader(prompt, max_tokens=1)
        steps.run(reader)
        end = reader.read()[1]
        assert isinstance(end, Finished)
        assert end.cached_prompt_tokens == cached
