"""The asynchronous client: the twin of client.py, name by name. What they share is in _base.py."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar, Unpack, cast

import grpc
from google.protobuf.message import Message

from client._base import DEFAULT_TARGET, REQUEST_ID_KEY, BaseClient, BaseGeneration, texts_of
from client._infos import ModelInfo, ServerInfo, Tokens, model_info_from, server_info_from, tokens_from
from client._messages import Event, event_from
from client._options import ChatMessage, ConnectionOptions, GenerateOptions
from client._request import (
    build_abort_request,
    build_chat_request,
    build_detokenize_request,
    build_request,
    build_tokenize_request,
)
from client._retries import Retries
from client._statuses import cancelled, error_from
from fiddler.v1 import generation_pb2, generation_pb2_grpc

if TYPE_CHECKING:
    from fiddler.v1.generation_pb2_grpc import GenerationServiceAsyncStub

    _Call = grpc.aio.UnaryStreamCall[generation_pb2.GenerateRequest, generation_pb2.GenerateResponse]

_Question = TypeVar("_Question", bound=Message)
_Answer = TypeVar("_Answer")


class AsyncClient(BaseClient):
    """A connection to a GPU service, for one event loop.

    Leaving its `async with` block, or `close()`, ends its generations.
    """

    def __init__(self, target: str = DEFAULT_TARGET, **options: Unpack[ConnectionOptions]) -> None:
        """Prepares a connection, made when it is first used. The arguments and errors are those of Client."""
        super().__init__(target, **options)

    def generate(self, prompt: str | Sequence[int], **options: Unpack[GenerateOptions]) -> "AsyncGeneration":
        """Continues a prompt. The arguments and errors are those of Client.generate."""
        return self._generate(build_request(prompt, options), options)

    def chat(self, messages: Sequence[ChatMessage], **options: Unpack[GenerateOptions]) -> "AsyncGeneration":
        """Answers the last message of a conversation. The arguments and errors are those of Client.chat."""
        return self._generate(build_chat_request(messages, options), options)

    async def abort(self, request_id: str, *, timeout: float | None = None) -> bool:
        """Ends a generation, whoever reads it: that gets its end, with FinishReason.CANCELLED.

        Returns:
            Whether it was under way, and is no longer.

        Raises:
            ClientError: The call failed.
        """
        return (await self._ask(self._stub.Abort, build_abort_request(request_id), timeout)).aborted

    async def tokenize(
        self,
        prompt: str | Sequence[ChatMessage],
        *,
        add_special_tokens: bool | None = None,
        timeout: float | None = None,
    ) -> Tokens:
        """Turns a text, or messages, into the tokens that generate() or chat() would compute on.

        Raises:
            ClientError: The call failed.
        """
        question = build_tokenize_request(prompt, add_special_tokens)
        return tokens_from(await self._ask(self._stub.Tokenize, question, timeout))

    async def detokenize(
        self, token_ids: Sequence[int], *, skip_special_tokens: bool | None = None, timeout: float | None = None
    ) -> str:
        """Turns token ids into text.

        Raises:
            ClientError: The call failed.
        """
        question = build_detokenize_request(token_ids, skip_special_tokens)
        return (await self._ask(self._stub.Detokenize, question, timeout)).text

    async def model_info(self, *, timeout: float | None = None) -> ModelInfo:
        """Asks about the model that is served.

        Raises:
            ClientError: The call failed.
        """
        return model_info_from(await self._ask(self._stub.GetModelInfo, generation_pb2.GetModelInfoRequest(), timeout))

    async def server_info(self, *, timeout: float | None = None) -> ServerInfo:
        """Asks about the server and what it is doing.

        Raises:
            ClientError: The call failed.
        """
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
        if self._credentials is None:
            return grpc.aio.insecure_channel(self.target, self._options)
        return grpc.aio.secure_channel(self.target, self._credentials, self._options)

    @cached_property
    def _stub(self) -> "GenerationServiceAsyncStub":
        return generation_pb2_grpc.GenerationServiceStub(self._channel)

    def _generate(self, request: generation_pb2.GenerateRequest, options: GenerateOptions) -> "AsyncGeneration":
        self._check_open()
        self._check_size(request)
        retries = self._retries(options.get("timeout"))

        def start() -> "_Call":
            if self._closed:
                raise cancelled()
            return self._stub.Generate(request, **self._call_options(retries.remaining_seconds()))

        return AsyncGeneration(request, retries, start)

    async def _ask(
        self, method: "grpc.aio.UnaryUnaryMultiCallable[_Question, _Answer]", question: _Question, timeout: float | None
    ) -> _Answer:
        self._check_size(question)
        retries = self._retries(timeout)
        while True:
            self._check_open()
            try:
                return await method(question, **self._call_options(retries.remaining_seconds()))
            except grpc.RpcError as rpc_error:
                error = error_from(rpc_error)
                delay_seconds = retries.delay_seconds(error)
                if delay_seconds is None:
                    raise error from rpc_error
            except asyncio.CancelledError as cancellation:
                _raise_unless_task_is_cancelled(cancellation)
                raise
            await asyncio.sleep(delay_seconds)


class AsyncGeneration(BaseGeneration):
    """The messages of one request, as they come.

    Iterating yields what GenerateOptions asked for: PromptLogprobs, then GenerationChunk events or, of a beam search,
    BestBeam events, and a Complete for each generation. It raises a ClientError if the request fails. Leaving the
    `async with` block before the end, or cancelling the task that reads, cancels the request on the server.
    """

    def __init__(self, request: generation_pb2.GenerateRequest, retries: Retries, start: "Callable[[], _Call]") -> None:
        super().__init__(request, retries)
        self._start = start
        self._cancelled = asyncio.Event()
        self._call = start()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while (response := await self._receive()) is not None:
            if (event := event_from(response)) is not None:
                return event
        raise StopAsyncIteration

    async def responses(self) -> AsyncIterator[generation_pb2.GenerateResponse]:
        """The messages as protobuf has them, for those who pass them on. Each message is read once, here or above."""
        while (response := await self._receive()) is not None:
            yield response

    async def text(self) -> str:
        """Reads to the end and returns the text that was still to come: of the first generation, where several are."""
        return (await self.texts())[0]

    async def texts(self) -> list[str]:
        """Reads to the end and returns the texts, still to come, of all generations, by index."""
        return texts_of([event async for event in self], self.num_generations)

    async def request_id(self) -> str | None:
        """The request's name, for abort(); waits until the server has taken the request. None where it did not."""
        if self._request_id is None:
            metadata = dict(await self._call.initial_metadata() or ())
            self._request_id = metadata.get(REQUEST_ID_KEY)  # type: ignore[assignment]
        return self._request_id

    def cancel(self) -> None:
        """Ends the request on the server. Whoever reads it gets a GenerationCancelledError."""
        self._cancelled.set()
        self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()

    async def _receive(self) -> generation_pb2.GenerateResponse | None:
        while True:
            try:
                response = await self._call.read()
                break
            except grpc.RpcError as rpc_error:
                error = self._judged(error_from(rpc_error), self._cancelled.is_set())
                delay_seconds = self._delay_seconds(error)
                if delay_seconds is None:
                    raise error from rpc_error
            except asyncio.CancelledError as error:
                _raise_unless_task_is_cancelled(error)
                raise
            await self._restart(delay_seconds)
        if response is grpc.aio.EOF:
            self._check_complete()
            return None
        message = cast(generation_pb2.GenerateResponse, response)
        self._note(message)
        return message

    async def _restart(self, delay_seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._cancelled.wait(), delay_seconds)
            raise cancelled()
        self._call = self._start()


def _raise_unless_task_is_cancelled(error: asyncio.CancelledError) -> None:
    """Tells a cancelled call, which gRPC reports by the same exception, from a cancelled task."""
    task = asyncio.current_task()
    if task is None or not task.cancelling():
        raise cancelled() from error
