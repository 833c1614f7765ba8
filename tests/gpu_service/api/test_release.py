"""Nothing of a request outlives its call, however the call ends, even if Python's collector of cycles never runs."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import grpc
import pytest
import structlog

from fiddler.v1 import generation_pb2, generation_pb2_grpc
from fiddler.v1.generation_pb2 import AbortRequest, DetokenizeRequest, GenerateRequest, TokenIds, TokenizeRequest
from gpu_service.api.guard import Guard
from gpu_service.api.service import GenerationServicer
from gpu_service.engine.engine import Engine
from tests.support.counting_model import VOCAB, CountingModel
from tests.support.generations import NumberTokenizer, generations_of

_SERVICE = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"].full_name
_UNKNOWN = [VOCAB] * 3
_WAIT_SECONDS = 5
GENERATE, TOKENIZE, DETOKENIZE = "Generate", "Tokenize", "Detokenize"


class Watched:
    """A message that weak references can watch."""

    def __init__(self, message: Any) -> None:
        self._message = message

    def __getattr__(self, name: str) -> Any:
        return getattr(self._message, name)


class _WatchingInterceptor(grpc.aio.ServerInterceptor):
    """Hands handlers watched messages."""

    def __init__(self) -> None:
        self.received: list[weakref.ref[Watched]] = []

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        handler = await continuation(handler_call_details)
        parse = handler.request_deserializer

        def deserialize(data: bytes) -> Watched:
            watched = Watched(parse(data))
            self.received.append(weakref.ref(watched))
            return watched

        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(handler.unary_stream, deserialize, handler.response_serializer)
        return grpc.unary_unary_rpc_method_handler(handler.unary_unary, deserialize, handler.response_serializer)


@pytest.fixture
def without_collector() -> Iterator[None]:
    # as in the services: by default structlog prints tracebacks with a library that keeps the frames
    structlog.configure([structlog.processors.format_exc_info, structlog.processors.JSONRenderer()])
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def engine() -> Iterator[Engine]:
    model = CountingModel()
    engine = Engine(model, model.scheduler(), lambda error: None)  # type: ignore[arg-type]
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture
async def served(engine: Engine) -> AsyncIterator[tuple[Any, _WatchingInterceptor]]:
    servicer, watching = GenerationServicer(generations_of(engine, NumberTokenizer())), _WatchingInterceptor()
    server = grpc.aio.server(interceptors=[Guard(()), watching])
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield generation_pb2_grpc.GenerationServiceStub(channel), watching
    await server.stop(None)


async def _end(call: Any) -> Any:
    with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
        if isinstance(call, grpc.aio.UnaryStreamCall):
            async for _ in call:
                pass
        else:
            await call
    return await call.code()


async def _assert_released(watching: _WatchingInterceptor, count: int) -> None:
    assert len(watching.received) == count
    for _ in range(_WAIT_SECONDS * 100):
        if not any(each() for each in watching.received):
            return
        await asyncio.sleep(0.01)
    kept = [each() for each in watching.received if each()]
    raise AssertionError(f"{len(kept)} of {count} requests are kept by {[type(r) for r in gc.get_referrers(kept[0])]}")


@pytest.mark.parametrize(
    ("method", "message", "code"),
    [
        (GENERATE, GenerateRequest(token_ids=TokenIds(ids=_UNKNOWN)), grpc.StatusCode.INVALID_ARGUMENT),
        (GENERATE, GenerateRequest(text="broken"), grpc.StatusCode.INTERNAL),
        (GENERATE, GenerateRequest(text="5", max_tokens=3), grpc.StatusCode.OK),
        (TOKENIZE, TokenizeRequest(), grpc.StatusCode.INVALID_ARGUMENT),
        (TOKENIZE, TokenizeRequest(text="broken"), grpc.StatusCode.INTERNAL),
        (DETOKENIZE, DetokenizeRequest(token_ids=_UNKNOWN), grpc.StatusCode.INVALID_ARGUMENT),
        ("Abort", AbortRequest(request_id="no id"), grpc.StatusCode.INVALID_ARGUMENT),
    ],
    ids=["refused", "broken", "answered", "tokenize", "tokenize-broken", "detokenize", "abort"],
)
async def test_a_request_is_released_when_its_call_has_ended(
    served: tuple[Any, _WatchingInterceptor], without_collector: None, method: str, message: Any, code: Any
) -> None:
    stub, watching = served
    for _ in range(5):
        assert await _end(getattr(stub, method)(message)) is code
    await _assert_released(watching, 5)


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("cancelled", grpc.StatusCode.CANCELLED),
        ("expired", grpc.StatusCode.DEADLINE_EXCEEDED),
        ("aborted", grpc.StatusCode.OK),
    ],
)
async def test_a_request_that_ends_early_is_released(
    served: tuple[Any, _WatchingInterceptor], engine: Engine, without_collector: None, how: str, code: Any
) -> None:
    stub, watching = served
    message = GenerateRequest(text="5", max_tokens=9000, request_id="early")
    for _ in range(5):
        call = stub.Generate(message, timeout=0.2 if how == "expired" else None)
        with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            async for _ in call:
                if how == "cancelled":
                    call.cancel()
                elif how == "aborted" and len(watching.received) % 2:
                    await stub.Abort(AbortRequest(request_id="early"))
        assert await call.code() is code
        while engine.num_running:  # the id is free again
            await asyncio.sleep(0.01)
    await _assert_released(watching, 10 if how == "aborted" else 5)
