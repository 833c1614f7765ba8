"""The API without a transport: what a front receives, and what is counted and logged."""

import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from fiddler.v1.generation_pb2 import (
    FINISH_REASON_CANCELLED,
    AbortRequest,
    AbortResponse,
    GenerateRequest,
    TokenIds,
    TokenizeRequest,
)
from gpu_service import metrics
from gpu_service.api import generations as module
from gpu_service.api.generations import Generations, GenerationStream
from gpu_service.engine.engine import Engine
from gpu_service.errors import (
    ComputationError,
    DuplicateIdError,
    EngineStoppedError,
    QueueFullError,
    RequestError,
    SlowReaderError,
    UnavailableError,
)
from gpu_service.sampling.outputs import FinishReason
from tests.support.counting_model import CountingModel
from tests.support.generations import NumberTokenizer, generations_of


@pytest.fixture
def model() -> CountingModel:
    return CountingModel()


@pytest.fixture
async def engine(model: CountingModel) -> AsyncIterator[Engine]:
    engine = Engine(model, model.scheduler(), lambda error: None)  # type: ignore[arg-type]
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture
def core(engine: Engine) -> Generations:
    return generations_of(engine, NumberTokenizer())


def _request(*ids: int, **fields: Any) -> GenerateRequest:
    return GenerateRequest(token_ids=TokenIds(ids=ids), **fields)


async def _submit(core: Generations, request: GenerateRequest) -> GenerationStream:
    core.check_available()
    return await core.submit(request, lambda: None)


def _counted(reason: str, status: str) -> float:
    return metrics.REQUESTS.labels(reason, status)._value.get()  # type: ignore[no-any-return]


def _end(stream: GenerationStream, left: FinishReason = FinishReason.CANCELLED) -> dict[str, Any]:
    """What is logged of the end."""
    with capture_logs() as logs:
        stream.end(left)
    (entry,) = logs
    assert entry["event"] == "request ended"
    return dict(entry)


async def test_a_request_is_streamed_to_its_end_and_recorded(core: Generations) -> None:
    before = _counted("length", "OK")
    stream = await _submit(core, _request(4, max_tokens=3, request_id="mine"))
    responses = [response async for response in stream.responses()]
    assert [token for response in responses for token in response.chunk.token_ids] == [5, 6, 7]
    assert "".join(response.chunk.text for response in responses) == "5 6 7 "
    end = _end(stream)
    assert (end["status"], end["finish_reason"], end["completion_tokens"]) == ("OK", "length", 3)
    assert end["request_id"] == "mine"
    assert _counted("length", "OK") == before + 1


@pytest.mark.parametrize(
    ("left", "status"), [(FinishReason.CANCELLED, "CANCELLED"), (FinishReason.DEADLINE, "DEADLINE_EXCEEDED")]
)
async def test_a_caller_that_leaves_ends_the_request(left: FinishReason, status: str, core: Generations) -> None:
    stream = await _submit(core, _request(4, max_tokens=9000, request_id="mine"))
    async for _ in stream.responses():
        break
    end = _end(stream, left)
    assert (end["status"], end["finish_reason"]) == (status, left.value)
    follower = await _submit(core, _request(4, max_tokens=1))
    assert [response async for response in follower.responses()]
    assert not core.abort(AbortRequest(request_id="mine")).aborted


async def test_what_is_refused_is_counted_by_its_code(core: Generations, engine: Engine) -> None:
    under_way = await _submit(core, _request(4, max_tokens=9000, request_id="same"))
    full = generations_of(engine, NumberTokenizer(), is_full=True)
    cases: list[tuple[Generations, GenerateRequest, type[Exception], str]] = [
        (core, _request(100), RequestError, "INVALID_ARGUMENT"),
        (core, _request(4, request_id="same"), DuplicateIdError, "ALREADY_EXISTS"),
        (core, GenerateRequest(text="broken"), ComputationError, "INTERNAL"),
        (full, _request(4), QueueFullError, "RESOURCE_EXHAUSTED"),
        (Generations(), _request(4), UnavailableError, "UNAVAILABLE"),
    ]
    for generations, request, error, code in cases:
        before = _counted("error", code)
        with pytest.raises(error):
            await _submit(generations, request)
        assert _counted("error", code) == before + 1, code
    _end(under_way)


async def test_why_nothing_is_served_is_told_and_what_is_loaded_answers_until_the_end(core: Generations) -> None:
    core.unavailable = "the service is stopping"
    with pytest.raises(UnavailableError, match=r"^the service is stopping$"):
        core.check_available()
    assert (await core.tokenize(TokenizeRequest(text="1 2"))).token_ids == [1, 2]
    with pytest.raises(UnavailableError, match=r"^the service is starting$"):
        Generations().abort(AbortRequest(request_id="a"))


async def test_a_computation_that_fails_is_recorded_and_gives_nothing_away(
    core: Generations, model: CountingModel
) -> None:
    model.error = RuntimeError("a secret")
    stream = await _submit(core, _request(4))
    with pytest.raises(ComputationError) as raised:
        [response async for response in stream.responses()]
    assert "secret" not in str(raised.value)
    end = _end(stream)
    assert (end["status"], end["finish_reason"]) == ("INTERNAL", "error")


async def test_an_engine_that_has_stopped_is_unavailable(core: Generations, engine: Engine) -> None:
    engine.stop()
    stream = await _submit(core, _request(4))
    with pytest.raises(EngineStoppedError):
        [response async for response in stream.responses()]
    assert _end(stream)["status"] == "UNAVAILABLE"


@pytest.mark.parametrize("comes_back", [True, False])
async def test_responses_that_nobody_reads_end_the_request(
    comes_back: bool, core: Generations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_UNREAD_EVENTS", 8)
    overflowed = threading.Event()
    stream = await core.submit(_request(4, max_tokens=9000), overflowed.set)
    assert overflowed.wait(20)
    if comes_back:
        with pytest.raises(SlowReaderError):
            [response async for response in stream.responses()]
    end = _end(stream)
    assert (end["status"], end["finish_reason"]) == ("RESOURCE_EXHAUSTED", "error")
    assert end["completion_tokens"] == (8 if comes_back else 0)


async def test_an_abort_ends_the_stream_of_another_call(core: Generations) -> None:
    stream = await _submit(core, _request(4, max_tokens=9000, request_id="mine"))
    assert core.abort(AbortRequest(request_id="mine")).aborted
    async for response in stream.responses():
        last = response
    assert last.HasField("complete")
    assert (_end(stream)["finish_reason"], core.abort(AbortRequest(request_id="mine")).aborted) == ("cancelled", False)


async def test_an_abort_of_several_names_those_that_it_ended(core: Generations) -> None:
    streams = [await _submit(core, _request(4, max_tokens=9000, request_id=name)) for name in ("one", "two")]
    answer = core.abort(AbortRequest(request_id="one", request_ids=["none", "two", "two"]))
    assert (answer.aborted, sorted(answer.aborted_ids)) == (True, ["one", "two"])
    assert core.abort(AbortRequest(request_ids=["one"])) == AbortResponse()
    for stream in streams:
        async for response in stream.responses():
            last = response
        assert last.complete.finish_reason == FINISH_REASON_CANCELLED
        _end(stream)
    for wrong, field in ((AbortRequest(), "request_id"), (AbortRequest(request_ids=["a", ""]), "request_ids[1]")):
        with pytest.raises(RequestError) as raised:
            core.abort(wrong)
        assert raised.value.field == field
