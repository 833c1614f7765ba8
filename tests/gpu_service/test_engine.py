import queue
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from gpu_service.engine import Engine, EngineStoppedError
from gpu_service.request import Event, Failed, Finished, FinishReason, Request, Token
from gpu_service.sampling_parameters import SamplingParameters
from gpu_service.scheduler import QueueFullError, Scheduler

VOCAB = 100


class _CountingModel:
    """Its likeliest next token is the last one plus one, around the vocabulary. It fails where it is told to."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.cache = self
        self.moves: list[tuple[int, int, int]] = []
        self.error: Exception | None = None
        self.steps = 0

    def move(self, source: int, target: int, length: int) -> None:
        self.moves.append((source, target, length))

    def forward(self, token_ids: torch.Tensor, *_: Any) -> torch.Tensor:
        self.steps += 1
        if self.error:
            raise self.error
        return torch.nn.functional.one_hot((token_ids[:, -1] + 1) % VOCAB, VOCAB).float()


@pytest.fixture
def model() -> _CountingModel:
    return _CountingModel()


@pytest.fixture
def failures() -> list[Exception]:
    return []


@pytest.fixture
def engine(model: _CountingModel, failures: list[Exception]) -> Iterator[Engine]:
    engine = Engine(model, Scheduler(2, 1, 8), failures.append)  # type: ignore[arg-type]
    engine.start()
    yield engine
    engine.stop()


class _Reader:
    """One request and the events that it was given."""

    def __init__(self, prompt: list[int], max_tokens: int = 5, eos: int = -1, stop: int = -1) -> None:
        self.events: queue.Queue[Event] = queue.Queue()
        self.request = Request(
            prompt, SamplingParameters(), max_tokens, frozenset([eos]), frozenset([stop]), self.events.put
        )

    def read(self) -> tuple[list[int], Finished | Failed]:
        tokens: list[int] = []
        while True:
            event = self.events.get(timeout=20)
            if not isinstance(event, Token):
                return tokens, event
            tokens.append(event.token_id)


def test_tokens_come_in_order_and_then_the_end(engine: Engine) -> None:
    reader = _Reader([3, 4])
    engine.submit(reader.request)
    tokens, end = reader.read()
    assert tokens == [5, 6, 7, 8, 9]
    assert isinstance(end, Finished)
    assert (end.reason, end.completion_tokens) == (FinishReason.LENGTH, 5)
    assert min(end.queue_seconds, end.prefill_seconds, end.decode_seconds) >= 0
    assert (engine.num_running, engine.num_waiting) == (0, 0)


@pytest.mark.parametrize(
    ("limits", "reason", "last"),
    [
        ({"eos": 7}, FinishReason.EOS, 7),
        ({"stop": 6}, FinishReason.STOP, 6),
        ({"max_tokens": 1}, FinishReason.LENGTH, 5),
    ],
)
def test_what_ends_a_generation_is_among_its_tokens(
    engine: Engine, limits: dict[str, int], reason: FinishReason, last: int
) -> None:
    reader = _Reader([4], **limits)
    engine.submit(reader.request)
    tokens, end = reader.read()
    assert tokens[-1] == last
    assert isinstance(end, Finished)
    assert end.reason is reason


def test_a_cancelled_request_ends_and_frees_its_slot(engine: Engine) -> None:
    readers = [_Reader([1], max_tokens=10**9) for _ in range(2)]
    for reader in readers:
        engine.submit(reader.request)
        assert isinstance(reader.events.get(timeout=20), Token)
    waiting = _Reader([50], max_tokens=2)
    engine.submit(waiting.request)
    engine.cancel(readers[0].request)
    _, end = readers[0].read()
    assert isinstance(end, Finished)
    assert end.reason is FinishReason.CANCELLED
    assert waiting.read()[0] == [51, 52]
    engine.cancel(readers[1].request)
    readers[1].read()


def test_cancelling_twice_or_after_the_end_brings_no_second_end(engine: Engine) -> None:
    reader = _Reader([4], max_tokens=1)
    engine.submit(reader.request)
    reader.read()
    engine.cancel(reader.request)
    engine.cancel(reader.request)
    other = _Reader([4], max_tokens=1)
    engine.submit(other.request)
    other.read()
    assert reader.events.empty()


def test_a_failing_step_fails_its_requests_and_the_engine_goes_on(
    engine: Engine, model: _CountingModel, failures: list[Exception]
) -> None:
    model.error = RuntimeError("no such weather")
    reader = _Reader([4])
    engine.submit(reader.request)
    tokens, end = reader.read()
    assert (tokens, end) == ([], Failed(model.error))
    assert failures == [model.error]
    model.error = None
    healthy = _Reader([4])
    engine.submit(healthy.request)
    assert healthy.read()[0] == [5, 6, 7, 8, 9]


def test_a_full_queue_is_told_at_once(engine: Engine) -> None:
    running = [_Reader([1], max_tokens=10**9) for _ in range(2)]
    for reader in running:
        engine.submit(reader.request)
        assert isinstance(reader.events.get(timeout=20), Token)
    engine.submit(_Reader([1]).request)
    refused = _Reader([1])
    engine.submit(refused.request)
    _, end = refused.read()
    assert isinstance(end, Failed)
    assert isinstance(end.error, QueueFullError)
    for reader in running:
        engine.cancel(reader.request)


def test_stopping_fails_what_is_under_way(model: _CountingModel) -> None:
    engine = Engine(model, Scheduler(1, 1, 8), lambda error: None)  # type: ignore[arg-type]
    engine.start()
    readers = [_Reader([1], max_tokens=10**9) for _ in range(2)]
    for reader in readers:
        engine.submit(reader.request)
    readers[0].events.get(timeout=20)
    engine.stop()
    for reader in readers:
        end = reader.read()[1]
        assert isinstance(end, Failed)
        assert isinstance(end.error, EngineStoppedError)


def test_an_idle_engine_computes_nothing(engine: Engine, model: _CountingModel) -> None:
    reader = _Reader([4], max_tokens=3)
    engine.submit(reader.request)
    reader.read()
    engine.cancel(reader.request)  # wakes it once more
    assert model.steps == 3


def test_a_request_that_no_sampler_can_be_made_for_fails_alone(engine: Engine) -> None:
    refused, healthy = _Reader([4]), _Reader([4])
    refused.request.sampling = SamplingParameters(temperature=-1.0)
    for reader in (refused, healthy):
        engine.submit(reader.request)
    end = refused.read()[1]
    assert isinstance(end, Failed)
    assert isinstance(end.error, ValueError)
    assert healthy.read()[0] == [5, 6, 7, 8, 9]


def test_an_engine_that_cannot_go_on_says_so_and_fails_everyone(
    model: _CountingModel, failures: list[Exception]
) -> None:
    engine = Engine(model, Scheduler(1, 1, 8), failures.append)  # type: ignore[arg-type]
    engine.start()
    readers = [_Reader([1], max_tokens=10**9) for _ in range(2)]
    for reader in readers:
        engine.submit(reader.request)
    readers[0].events.get(timeout=20)
    model.error = torch.AcceleratorError("a fault on the device", 700)
    for reader in readers:
        assert isinstance(reader.read()[1], Failed)
    engine.stop()
    assert isinstance(failures[-1], EngineStoppedError)
