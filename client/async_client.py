"""The asynchronous client: the same names as in client.py, to await. What both share is in _base.py."""

import asyncio
import contextlib
import copy
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar, Unpack, cast

import grpc

from client import _unary
from client._answers import Answer, answers_of
from client._base import DEFAULT_TARGET, REQUEST_ID_KEY, BaseClient, BaseGeneration, texts_of
from client._connection import token_metadata
from client._infos import ModelInfo, ServerInfo, Tokens, tokens_from
from client._messages import Event, event_from
from client._options import ChatMessage, ChatOptions, ConnectionOptions, GenerateOptions
from client._requests.generate import chat_request, generate_request
from client._retries import Retries
from client._statuses import cancelled, error_from
from client._unary import UnaryCall
from fiddler.v1 import generation_pb2, generation_pb2_grpc

if TYPE_CHECKING:
    from fiddler.v1.generation_pb2_grpc import GenerationServiceAsyncStub

    _Stream = grpc.aio.UnaryStreamCall[generation_pb2.GenerateRequest, generation_pb2.GenerateResponse]

_Result = TypeVar("_Result")


class AsyncClient(BaseClient):
    """A connection to a GPU service, for one event loop.

    Leaving its `async with` block, or awaiting `close()`, ends its generations.
    """

    def __init__(self, target: str = DEFAULT_TARGET, **options: Unpack[ConnectionOptions]) -> None:
        """Prepares a connection. It is made by the first call. The arguments and errors are those of Client."""
        super().__init__(target, **options)

    def generate(self, prompt: str | Sequence[int], **options: Unpack[GenerateOptions]) -> "AsyncGeneration":
        """Continues a prompt. The arguments and errors are those of Client.generate."""
        return self._generate(generate_request(prompt, options), options)

    def chat(self, messages: Sequence[ChatMessage], **options: Unpack[ChatOptions]) -> "AsyncGeneration":
        """Answers the last message of a conversation. The arguments and errors are those of Client.chat."""
        return self._generate(chat_request(messages, options), options)

    def send(self, request: generation_pb2.GenerateRequest, *, timeout: float | None = None) -> "AsyncGeneration":
        """Sends a request that is protobuf already, as a front of another protocol builds it.

        Raises:
            InvalidRequestError: The timeout is wrong, or the request is larger than max_message_bytes.
        """
        return self._generate(request, {"timeout": timeout})

    def with_token(self, token: str | None) -> Self:
        """A client with another token on this client's connection. Closing either closes the connection.

        Raises:
            InvalidRequestError: The token is malformed, or the connection could be read by others.
        """
        metadata = token_metadata(self.target, token, is_encrypted=self._credentials is not None)
        self._stub  # noqa: B018 - the connection is made here, so that the copy has the same one
        other = copy.copy(self)
        other._metadata = metadata
        return other

    def with_metadata(self, metadata: Mapping[str, str]) -> Self:
        """A client that sends more metadata with each call, on this client's connection: such as `traceparent`.

        Args:
            metadata: Keys in lower case, and values of visible ASCII characters.
        """
        self._stub  # noqa: B018 - as in with_token
        other = copy.copy(self)
        other._metadata = (*self._metadata, *metadata.items())
        return other

    async def abort(self, request_id: str, *, timeout: float | None = None) -> bool:
        """Ends a generation of any client. The result and errors are those of Client.abort."""
        return await self._call(_unary.abort(request_id), timeout)

    async def abort_all(self, request_ids: Sequence[str], *, timeout: float | None = None) -> tuple[str, ...]:
        """Ends several generations of any clients. The result and errors are those of Client.abort_all."""
        return await self._call(_unary.abort_all(request_ids), timeout)

    async def tokenize(
        self,
        prompt: str | Sequence[ChatMessage],
        *,
        add_special_tokens: bool | None = None,
        chat_template: str | None = None,
        tools: Sequence[Mapping[str, object]] | None = None,
        timeout: float | None = None,
    ) -> Tokens:
        """Turns a text, or messages and tools, into tokens. The errors are those of Client.tokenize."""
        call = _unary.tokenize(prompt, add_special_tokens=add_special_tokens, chat_template=chat_template, tools=tools)
        return await self._call(call, timeout)

    async def tokenize_request(
        self, request: generation_pb2.TokenizeRequest, *, timeout: float | None = None
    ) -> Tokens:
        """As tokenize(), of a request that is protobuf already."""
        return await self._call(UnaryCall("Tokenize", request, tokens_from), timeout)

    async def detokenize(
        self, token_ids: Sequence[int], *, skip_special_tokens: bool | None = None, timeout: float | None = None
    ) -> str:
        """Turns token ids into text. The errors are those of Client.detokenize."""
        return await self._call(_unary.detokenize(token_ids, skip_special_tokens=skip_special_tokens), timeout)

    async def model_info(self, *, timeout: float | None = None) -> ModelInfo:
        """Asks about the model that is served. The errors are those of Client.model_info."""
        return await self._call(_unary.model_info(), timeout)

    async def server_info(self, *, timeout: float | None = None) -> ServerInfo:
        """Asks about the server and its load. The errors are those of Client.server_info."""
        return await self._call(_unary.server_info(), timeout)

    async def close(self) -> None:
        """Closes the connection and ends its calls."""
        self._closed = True
        if "_channel" in self.__dict__:
            await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # Made by the first call: a channel belongs to the event loop that runs when it is made, and a client may be made
    # before any loop runs.
    @cached_property
    def _channel(self) -> grpc.aio.Channel:
        if self._credentials is None:
            return grpc.aio.insecure_channel(self._dialled, self._options)
        return grpc.aio.secure_channel(self._dialled, self._credentials, self._options)

    @cached_property
    def _stub(self) -> "GenerationServiceAsyncStub":
        return generation_pb2_grpc.GenerationServiceStub(self._channel)

    def _generate(self, request: generation_pb2.GenerateRequest, options: GenerateOptions) -> "AsyncGeneration":
        self._check_open()
        self._check_size(request)
        retries = self._retries(options.get("timeout"))

        def start() -> "_Stream":
            if self._closed:
                raise cancelled()
            return self._stub.Generate(request, **self._call_options(retries))

        return AsyncGeneration(request, retries, start)

    async def _call(self, call: UnaryCall[_Result], timeout: float | None) -> _Result:
        self._check_size(call.request)
        retries = self._retries(timeout)
        while True:
            self._check_open()
            try:
                return call.result(await getattr(self._stub, call.method)(call.request, **self._call_options(retries)))
            except grpc.RpcError as rpc_error:
                delay_seconds = retries.delay_or_raise(error_from(rpc_error), rpc_error)
            except asyncio.CancelledError as cancellation:
                _raise_unless_task_is_cancelled(cancellation)
                raise
            await asyncio.sleep(delay_seconds)


class AsyncGeneration(BaseGeneration):
    """The messages of one request, as they arrive.

    Iterating yields what GenerateOptions asked for: PromptLogprobs, then GenerationChunk events or, of a beam search,
    BestBeam events, and a Complete for each generation. It raises a ClientError if the request fails. Leaving the
    `async with` block before the end, or cancelling the task that reads, cancels the request on the server.
    """

    def __init__(
        self, request: generation_pb2.GenerateRequest, retries: Retries, start: "Callable[[], _Stream]"
    ) -> None:
        super().__init__(request, retries)
        self._start = start
        self._cancelled = asyncio.Event()
        self._stream = start()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while (response := await self.read()) is not None:
            if (event := event_from(response)) is not None:
                return event
        raise StopAsyncIteration

    async def responses(self) -> AsyncIterator[generation_pb2.GenerateResponse]:
        """The messages as protobuf, to pass them on. A message is read once: either here or by iterating."""
        while (response := await self.read()) is not None:
            yield response

    async def read(self) -> generation_pb2.GenerateResponse | None:
        """The next message as protobuf; None at the end."""
        while True:
            try:
                response = await self._stream.read()
                break
            except grpc.RpcError as rpc_error:
                delay_seconds = self._seconds_to_retry(rpc_error, is_cancelled=self._cancelled.is_set())
            except asyncio.CancelledError as cancellation:
                _raise_unless_task_is_cancelled(cancellation)
                raise
            await self._restart(delay_seconds)
        is_end = response is grpc.aio.EOF
        return self._received(None if is_end else cast("generation_pb2.GenerateResponse", response))

    async def text(self) -> str:
        """Reads to the end and returns the text not read yet, of the first generation if there are several."""
        return (await self.texts())[0]

    async def texts(self) -> list[str]:
        """Reads to the end and returns the texts not read yet, of all generations by index."""
        return texts_of([event async for event in self], self.num_generations)

    async def answer(self) -> Answer:
        """Reads to the end and returns the answer to a chat, the first if there are several, as far as not read yet."""
        return (await self.answers())[0]

    async def answers(self) -> list[Answer]:
        """Reads to the end and returns all answers to a chat by index, as far as not read yet."""
        return answers_of([event async for event in self], self.num_generations)

    async def request_id(self) -> str | None:
        """The request's name, for abort(). Waits until the server accepts the request; None if it refuses it."""
        if self._request_id is None:
            metadata = dict(await self._stream.initial_metadata() or ())
            self._request_id = metadata.get(REQUEST_ID_KEY)  # type: ignore[assignment]
        return self._request_id

    def cancel(self) -> None:
        """Ends the request on the server. Reading it then raises a GenerationCancelledError."""
        self._cancelled.set()
        self._stream.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()

    async def _restart(self, delay_seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._cancelled.wait(), delay_seconds)
            raise cancelled()
        self._stream = self._start()


def _raise_unless_task_is_cancelled(cancellation: asyncio.CancelledError) -> None:
    """Raises the client's error if the call was cancelled, which gRPC reports as it reports a cancelled task."""
    task = asyncio.current_task()
    if task is None or not task.cancelling():
        raise cancelled() from cancellation
