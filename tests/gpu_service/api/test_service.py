"""What callers receive after an unforeseen error. tests/end_to_end has the other errors."""

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc
import pytest

from fiddler.v1 import generation_pb2_grpc
from fiddler.v1.generation_pb2 import BeamSearch, DetokenizeRequest, GenerateRequest, TokenIds, TokenizeRequest
from gpu_service.api.service import GenerationServicer
from gpu_service.engine.engine import Engine
from tests.support.counting_model import CountingModel
from tests.support.generations import generations_of

EXPECTED = grpc.StatusCode.INTERNAL, "the computation failed; the service's log says why"


class _BrokenTokenizer:
    """Raises an unforeseen error for every text."""

    longest_token = 10

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        raise RuntimeError("a secret")

    def decode(self, token_ids: list[int], skip_special_tokens: bool = True) -> str:
        raise RuntimeError("a secret")

    def ends_in_byte(self, token_ids: list[int]) -> bool:
        return False


@pytest.fixture
def engine() -> Any:
    model = CountingModel()
    engine = Engine(model, model.scheduler(), lambda error: None)  # type: ignore[arg-type]
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture
async def stub(engine: Engine) -> AsyncIterator[Any]:
    servicer, server = GenerationServicer(generations_of(engine, _BrokenTokenizer())), grpc.aio.server()
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield generation_pb2_grpc.GenerationServiceStub(channel)
    await server.stop(None)


async def _status(call: Any) -> tuple[grpc.StatusCode, str]:
    with suppress(grpc.aio.AioRpcError):
        if isinstance(call, grpc.aio.UnaryStreamCall):
            async for _ in call:
                pass
        else:
            await call
    return await call.code(), await call.details()


@pytest.mark.parametrize(
    "request_",
    [
        GenerateRequest(text="a"),
        GenerateRequest(token_ids=TokenIds(ids=[4]), max_tokens=40),
        GenerateRequest(token_ids=TokenIds(ids=[4]), echo=True),
        TokenizeRequest(text="a"),
        DetokenizeRequest(token_ids=[4]),
    ],
    ids=["prompt", "text", "echo", "tokenize", "detokenize"],
)
async def test_what_breaks_unforeseen_is_internal_and_no_secret_is_told(
    stub: Any, engine: Engine, request_: Any
) -> None:
    method = type(request_).__name__.removesuffix("Request")
    assert await _status(getattr(stub, method)(request_)) == EXPECTED
    follower = GenerateRequest(token_ids=TokenIds(ids=[5]), beam_search=BeamSearch(num_beams=2), max_tokens=1)
    assert await _status(stub.Generate(follower)) == EXPECTED, "its text, too, but it was computed"
    assert (engine.num_running, engine.num_waiting) == (0, 0)
