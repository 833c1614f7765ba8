"""The asynchronous client: the twin of client.py, name by name. What they share is in _base.py."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar, Unpack, cast

import grpc

from client._base import DEFAULT_TARGET, BaseClient, BaseGeneration, ConnectionOptions
from client._messages import Chunk, Complete, ModelInfo, ServerInfo, event_from, model_info_from, server_info_from
from client._statuses import cancelled, error_from
from fiddler.v1 import generation_pb2, generation_pb2_grpc

if TYPE_CHECKING:
    from fiddler.v1.generation_pb2_grpc import GenerationServiceAsyncStub

_Question = TypeVar("_Question")
_Answer = TypeVar("_Answer")


class AsyncClient(BaseClient):
    """A connection to a GPU service, for one event loop.

    Leaving its `async with` block, or `close()`, ends its generations.
    """

    def __init__(self, target: str = DEFAULT_TARGET, **options: Unpack[ConnectionOptions]) -> None:
        """Prepares a connection, which is made when it is first used.

        Args:
            target: Where the GPU service listens: HOST:PORT or unix:PATH.
            options: How to connect, see ConnectionOptions.

        Raises:
            InvalidRequestError: The target is no address.
        """
        super().__init__(target, **options)

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop_token_ids: Sequence[int] = (),
        timeout: float | None = None,
    ) -> "AsyncGeneration":
        """Starts a generation. The arguments and errors are those of Client.generate."""
        self._check_open()
        request = self._request(
            prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop_token_ids=stop_token_ids,
        )
        return AsyncGeneration(self._stub.Generate(request, **self._call_options(timeout)))

    async def model_info(self, *, timeout: float | None = None) -> ModelInfo:
        """Asks about the model that is served.

        Raises:
            ClientError: The call failed.
        """
        self._check_open()
        return model_info_from(await self._ask(self._stub.GetModelInfo, generation_pb2.GetModelInfoRequest(), timeout))

    async def server_info(self, *, timeout: float | None = None) -> ServerInfo:
        """Asks about the server and what it is doing.

        Raises:
            ClientError: The call failed.
        """
        self._check_open()
        question = generation_pb2.GetServerInfoRequest()
        return server_info_from(await self._ask(self._stub.GetServerInfo, question, timeout))

    async def close(self) -> None:
        """Closes the connection and ends what still runs on it."""
        self._closed = True
        if "_channel" in self.__dict__:
            await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # A channel belongs to the event loop that runs when it is made, and a client may be made before any runs.
    @cached_property
    def _channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(self.target, self._options)

    @cached_property
    def _stub(self) -> "GenerationServiceAsyncStub":
        return generation_pb2_grpc.GenerationServiceStub(self._channel)

    async def _ask(
        self, method: "grpc.aio.UnaryUnaryMultiCallable[_Question, _Answer]", question: _Question, timeout: float | None
    ) -> _Answer:
        try:
            return await method(question, **self._call_options(timeout))
        except grpc.RpcError as error:
            raise error_from(error) from error
        except asyncio.CancelledError as error:
            _raise_unless_task_is_cancelled(error)
            raise


class AsyncGeneration(BaseGeneration):
    """The messages of one generation, as they come.

    Iterating yields Chunk after Chunk, then one Complete, and raises a ClientError where the generation fails. Leaving
    its `async with` block before the end, or cancelling the task that reads it, cancels it on the server.
    """

    def __init__(
        self, call: "grpc.aio.UnaryStreamCall[generation_pb2.GenerateRequest, generation_pb2.GenerateResponse]"
    ) -> None:
        super().__init__()
        self._call = call

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk | Complete:
        while (response := await self._receive()) is not None:
            if (event := event_from(response)) is not None:
                return event
        raise StopAsyncIteration

    async def responses(self) -> AsyncIterator[generation_pb2.GenerateResponse]:
        """The messages as protobuf has them, for those who pass them on. Each message is read once, here or above."""
        while (response := await self._receive()) is not None:
            yield response

    async def text(self) -> str:
        """Reads to the end and returns the text that was still to come."""
        return "".join([event.text async for event in self if isinstance(event, Chunk)])

    def cancel(self) -> None:
        """Ends the generation on the server. Whoever reads it gets a GenerationCancelledError."""
        self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()

    async def _receive(self) -> generation_pb2.GenerateResponse | None:
        try:
            response = await self._call.read()
        except grpc.RpcError as error:
            raise error_from(error) from error
        except asyncio.CancelledError as error:
            _raise_unless_task_is_cancelled(error)
            raise
        if response is grpc.aio.EOF:
            self._check_complete()
            return None
        message = cast(generation_pb2.GenerateResponse, response)
        self._note(message)
        return message


def _raise_unless_task_is_cancelled(error: asyncio.CancelledError) -> None:
    """Tells a cancelled call, which gRPC reports by the same exception, from a cancelled task."""
    task = asyncio.current_task()
    if task is None or not task.cancelling():
        raise cancelled() from error
