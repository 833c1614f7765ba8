"""The engine's thread and the calls by which others reach it. What a step does is tested in test_stepper.py."""

import queue
from collections.abc import Iterator, Sequence

import pytest
import torch

from gpu_service.engine.engine import Engine
from gpu_service.engine.events import Failed, Finished, Token
from gpu_service.errors import DuplicateIdError, EngineStoppedError, NeverFitsError, QueueFullError
from gpu_service.model_runner.forward_input import Span
from gpu_service.sampling.outputs import FinishReason
from tests.support.counting_model import CountingModel, Reader

ENDLESS = 10**6


@pytest.fixture
def model() -> CountingModel:
    return CountingModel()


@pytest.fixture
def failures() -> list[Exception]:
    return []


@pytest.fixture
def engine(model: CountingModel, failures: list[Exception]) -> Iterator[Engine]:
    engine = Engine(model, model.scheduler(max_slots=2), failures.append)  # type: ignore[arg-type]
    engine.start()
    yield engine
    engine.stop()


def _started(engine: Engine, *readers: Reader) -> None:
    for reader in readers:
        engine.submit(reader.request)
        assert isinstance(reader.events.get(timeout=20), Token)


def test_tokens_come_in_order_and_then_the_end(engine: Engine) -> None:
    reader = Reader([3, 4])
    engine.submit(reader.request)
    tokens, end = reader.read()
    assert tokens == [5, 6, 7, 8, 9]
    assert isinstance(end, Finished)
    assert (end.reason, end.completion_tokens) == (FinishReason.LENGTH, 5)
    assert min(end.queue_seconds, end.prefill_seconds, end.decode_seconds) >= 0
    assert (engine.num_running, engine.num_waiting, engine.used_rows, engine.used_kv_bytes) == (0, 0, 0, 0)


def test_how_far_a_request_is_computed_can_be_read_from_its_answer(engine: Engine) -> None:
    reader = Reader([3, 4])
    answer = engine.submit(reader.request)
    assert answer.request is reader.request
    assert reader.read()[0] == answer.generations[0].output == [5, 6, 7, 8, 9]
    assert answer.started_at is not None
    assert answer.first_token_at is not None
    assert answer.submitted_at <= answer.started_at <= answer.first_token_at


def test_what_is_held_is_told(engine: Engine) -> None:
    reader = Reader([1, 2], max_tokens=ENDLESS)
    _started(engine, reader)
    assert (engine.num_running, engine.used_rows, engine.used_kv_bytes) == (1, 1, ENDLESS + 2)
    assert engine.kv_bytes == 10**9
    engine.cancel(reader.request)
    reader.read()


def test_a_cancelled_request_ends_and_frees_its_slot(engine: Engine) -> None:
    readers = [Reader([1], max_tokens=ENDLESS) for _ in range(2)]
    _started(engine, *readers)
    waiting = Reader([50], max_tokens=2)
    engine.submit(waiting.request)
    engine.cancel(readers[0].request, FinishReason.DEADLINE)
    _, end = readers[0].read()
    assert isinstance(end, Finished)
    assert end.reason is FinishReason.DEADLINE
    assert waiting.read()[0] == [51, 52]
    engine.cancel(readers[1].request)
    readers[1].read()


def test_a_cancelled_request_frees_its_slot_before_the_next_step(model: CountingModel) -> None:
    gate, entered = queue.SimpleQueue[None](), queue.SimpleQueue[int]()
    compute = model.compute

    def slow_compute(spans: Sequence[Span]) -> torch.Tensor:
        entered.put(spans[0].token_ids[0])
        gate.get(timeout=20)
        return compute(spans)

    model.compute = slow_compute  # type: ignore[method-assign]
    engine = Engine(model, model.scheduler(max_slots=1), lambda error: None)  # type: ignore[arg-type]
    engine.start()
    cancelled, waiting = Reader([1], max_tokens=ENDLESS), Reader([50], max_tokens=1)
    engine.submit(cancelled.request)
    assert entered.get(timeout=20) == 1
    engine.submit(waiting.request)
    engine.cancel(cancelled.request)
    gate.put(None)
    assert entered.get(timeout=20) == 50
    gate.put(None)
    assert waiting.read()[0] == [51]
    engine.stop()


def test_cancelling_twice_or_after_the_end_brings_no_second_end(engine: Engine) -> None:
    reader = Reader([4], max_tokens=1)
    engine.submit(reader.request)
    reader.read()
    engine.cancel(reader.request)
    engine.cancel(reader.request)
    other = Reader([4], max_tokens=1)
    engine.submit(other.request)
    other.read()
    assert reader.events.empty()


def test_abort_ends_the_request_of_that_id_and_says_whether_it_did(engine: Engine) -> None:
    readers = [Reader([1], max_tokens=ENDLESS, request_id=name) for name in ("running", "other")]
    waiting = Reader([1], request_id="waiting")
    _started(engine, *readers)
    engine.submit(waiting.request)
    for reader, name in ((waiting, "waiting"), (readers[0], "running")):
        assert engine.abort(name)
        end = reader.read()[1]
        assert isinstance(end, Finished)
        assert end.reason is FinishReason.CANCELLED
        assert not engine.abort(name)
    assert not engine.abort("nobody")
    assert engine.num_running == 1
    engine.cancel(readers[1].request)
    readers[1].read()


def test_what_has_ended_cannot_be_aborted_and_its_id_may_be_used_again(engine: Engine) -> None:
    for _ in range(2):
        reader = Reader([1], request_id="mine")
        engine.submit(reader.request)
        reader.read()
        assert not engine.abort("mine")


def test_an_id_of_another_request_under_way_is_refused(engine: Engine) -> None:
    running = Reader([1], max_tokens=ENDLESS, request_id="mine")
    _started(engine, running)
    with pytest.raises(DuplicateIdError, match="'mine'"):
        engine.submit(Reader([1], request_id="mine").request)
    assert engine.abort("mine")
    running.read()


def test_what_can_never_fit_is_refused_at_once(engine: Engine) -> None:
    with pytest.raises(NeverFitsError):
        engine.submit(Reader([1], n=3, request_id="wide").request)
    assert not engine.abort("wide")


def test_a_full_queue_is_told_at_once(engine: Engine) -> None:
    running = [Reader([1], max_tokens=ENDLESS) for _ in range(2)]
    _started(engine, *running)
    engine.submit(Reader([1]).request)
    refused = Reader([1], request_id="refused")
    engine.submit(refused.request)
    _, end = refused.read()
    assert isinstance(end, Failed)
    assert isinstance(end.error, QueueFullError)
    assert not engine.abort("refused")
    for reader in running:
        engine.cancel(reader.request)


def test_stopping_fails_what_is_under_way(model: CountingModel) -> None:
    engine = Engine(model, model.scheduler(max_slots=1), lambda error: None)  # type: ignore[arg-type]
    engine.start()
    readers = [Reader([1], max_tokens=ENDLESS) for _ in range(2)]
    for reader in readers:
        engine.submit(reader.request)
    readers[0].events.get(timeout=20)
    engine.stop()
    for reader in readers:
        end = reader.read()[1]
        assert isinstance(end, Failed)
        assert isinstance(end.error, EngineStoppedError)


def test_a_request_that_comes_when_the_engine_has_stopped_fails(model: CountingModel) -> None:
    engine = Engine(model, model.scheduler(), lambda error: None)  # type: ignore[arg-type]
    engine.start()
    engine.stop()
    reader = Reader([1], request_id="late")
    engine.submit(reader.request)
    end = reader.events.get_nowait()
    assert isinstance(end, Failed)
    assert isinstance(end.error, EngineStoppedError)
    assert not engine.abort("late")


def test_an_idle_engine_computes_nothing(engine: Engine, model: CountingModel) -> None:
    reader = Reader([4], max_tokens=3)
    engine.submit(reader.request)
    reader.read()
    engine.cancel(reader.request)  # wakes the thread once more
    assert model.steps == 3


def test_an_engine_that_cannot_go_on_says_so_and_fails_everyone(
    model: CountingModel, failures: list[Exception]
) -> None:
    engine = Engine(model, model.scheduler(max_slots=1), failures.append)  # type: ignore[arg-type]
    engine.start()
    readers = [Reader([1], max_tokens=ENDLESS) for _ in range(2)]
    for reader in readers:
        engine.submit(reader.request)
    readers[0].events.get(timeout=20)
    model.error = torch.AcceleratorError("a fault on the device", 700)
    for reader in readers:
        assert isinstance(reader.read()[1], Failed)
    engine.stop()
    assert isinstance(failures[-1], EngineStoppedError)
