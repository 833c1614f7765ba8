"""The synchronous client. What it shares with the asynchronous one is in _base.py."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self, TypeVar, Unpack

import grpc

from client import _unary
from client._answers import Answer, answers_of
from client._base import DEFAULT_TARGET, REQUEST_ID_KEY, BaseClient, BaseGeneration, texts_of
from client._infos import ModelInfo, ServerInfo, Tokens
from client._messages import Event, event_from
from client._options import ChatMessage, ChatOptions, ConnectionOptions, GenerateOptions
from client._requests.generate import chat_request, generate_request
from client._retries import Retries
from client._statuses import cancelled, error_from
from client._unary import UnaryCall
from fiddler.v1 import generation_pb2, generation_pb2_grpc

_Result = TypeVar("_Result")


class Client(BaseClient):
    """A connection to a GPU service.

    Threads may share it. Leaving its `with` block, or calling `close()`, ends its generations.
    """

    def __init__(self, target: str = DEFAULT_TARGET, **options: Unpack[ConnectionOptions]) -> None:
        """Prepares a connection. It is made by the first call.

        Args:
            target: Where the GPU service listens: HOST:PORT or unix:PATH.
            options: How to connect, see ConnectionOptions.

        Raises:
            InvalidRequestError: The target is not an address, or an option is wrong.
        """
        super().__init__(target, **options)
        if self._credentials is None:
            self._channel = grpc.insecure_channel(self._dialled, self._options)
        else:
            self._channel = grpc.secure_channel(self._dialled, self._credentials, self._options)
        self._stub = generation_pb2_grpc.GenerationServiceStub(self._channel)

    def generate(self, prompt: str | Sequence[int], **options: Unpack[GenerateOptions]) -> "Generation":
        """Continues a prompt. Errors of the server are raised when the generation is read.

        Args:
            prompt: Text, or token ids, which are used as they are.
            options: How to generate, see GenerateOptions.

        Raises:
            InvalidRequestError: A value does not fit its field of the request.
        """
        return self._generate(generate_request(prompt, options), options)

    def chat(self, messages: Sequence[ChatMessage], **options: Unpack[ChatOptions]) -> "Generation":
        """Answers the last message of a conversation with the model's chat template. Otherwise as generate().

        Args:
            messages: The messages so far: [{"role": "user", "content": "Who are you?"}].
            options: How to answer, see ChatOptions.

        Raises:
            InvalidRequestError: A value does not fit its field of the request.
        """
        return self._generate(chat_request(messages, options), options)

    def abort(self, request_id: str, *, timeout: float | None = None) -> bool:
        """Ends a generation of any client. That generation completes with FinishReason.CANCELLED.

        Returns:
            Whether the request was under way and has been ended.

        Raises:
            ClientError: The call failed.
        """
        return self._call(_unary.abort(request_id), timeout)

    def abort_all(self, request_ids: Sequence[str], *, timeout: float | None = None) -> tuple[str, ...]:
        """Ends several generations of any clients, as abort() does.

        Returns:
            The requests that were under way and have been ended.

        Raises:
            ClientError: The call failed.
        """
        return self._call(_unary.abort_all(request_ids), timeout)

    def tokenize(
        self,
        prompt: str | Sequence[ChatMessage],
        *,
        add_special_tokens: bool | None = None,
        chat_template: str | None = None,
        tools: Sequence[Mapping[str, object]] | None = None,
        timeout: float | None = None,
    ) -> Tokens:
        """Turns a text, or messages and tools, into the tokens that generate() or chat() would compute.

        Raises:
            ClientError: The call failed.
        """
        call = _unary.tokenize(prompt, add_special_tokens=add_special_tokens, chat_template=chat_template, tools=tools)
        return self._call(call, timeout)

    def detokenize(
        self, token_ids: Sequence[int], *, skip_special_tokens: bool | None = None, timeout: float | None = None
    ) -> str:
        """Turns token ids into text.

        Raises:
            ClientError: The call failed.
        """
        return self._call(_unary.detokenize(token_ids, skip_special_tokens=skip_special_tokens), timeout)

    def model_info(self, *, timeout: float | None = None) -> ModelInfo:
        """Asks about the model that is served.

        Raises:
            ClientError: The call failed.
        """
        return self._call(_unary.model_info(), timeout)

    def server_info(self, *, timeout: float | None = None) -> ServerInfo:
        """Asks about the server and its load.

        Raises:
            ClientError: The call failed.
        """
        return self._call(_unary.server_info(), timeout)

    def close(self) -> None:
        """Closes the connection and ends its calls."""
        self._closed = True
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _generate(self, request: generation_pb2.GenerateRequest, options: GenerateOptions) -> "Generation":
        self._check_open()
        self._check_size(request)
        retries = self._retries(options.get("timeout"))

        def start() -> _Stream:
            if self._closed:
                raise cancelled()
            return self._stub.Generate(request, **self._call_options(retries))

        return Generation(request, retries, start)

    def _call(self, call: UnaryCall[_Result], timeout: float | None) -> _Result:
        self._check_size(call.request)
        retries = self._retries(timeout)
        while True:
            self._check_open()
            try:
                return call.result(getattr(self._stub, call.method)(call.request, **self._call_options(retries)))
            except grpc.RpcError as rpc_error:
                delay_seconds = retries.delay_or_raise(error_from(rpc_error), rpc_error)
            time.sleep(delay_seconds)


class _Stream(Protocol):
    """What gRPC returns for a stream of responses. It has no public type."""

    def __next__(self) -> generation_pb2.GenerateResponse: ...

    def cancel(self) -> bool: ...

    def initial_metadata(self) -> Sequence[tuple[str, str | bytes]]: ...


class Generation(BaseGeneration):
    """The messages of one request, as they arrive.

    Iterating yields what GenerateOptions asked for: PromptLogprobs, then GenerationChunk events or, of a beam search,
    BestBeam events, and a Complete for each generation. It raises a ClientError if the request fails. Leaving the
    `with` block before the end cancels the request on the server.
    """

    def __init__(self, request: generation_pb2.GenerateRequest, retries: Retries, start: Callable[[], _Stream]) -> None:
        super().__init__(request, retries)
        self._start = start
        self._cancelled = threading.Event()
        self._stream = start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        for response in self.responses():
            if (event := event_from(response)) is not None:
                return event
        raise StopIteration

    def responses(self) -> Iterator[generation_pb2.GenerateResponse]:
        """The messages as protobuf, to pass them on. A message is read once: either here or by iterating."""
        while (response := self._receive()) is not None:
            yield response

    def text(self) -> str:
        """Reads to the end and returns the text not read yet, of the first generation if there are several."""
        return self.texts()[0]

    def texts(self) -> list[str]:
        """Reads to the end and returns the texts not read yet, of all generations by index."""
        return texts_of(self, self.num_generations)

    def answer(self) -> Answer:
        """Reads to the end and returns the answer to a chat, the first if there are several, as far as not read yet."""
        return self.answers()[0]

    def answers(self) -> list[Answer]:
        """Reads to the end and returns all answers to a chat by index, as far as not read yet."""
        return answers_of(self, self.num_generations)

    def request_id(self) -> str | None:
        """The request's name, for abort(). Waits until the server accepts the request; None if it refuses it."""
        if self._request_id is None:
            self._request_id = dict(self._stream.initial_metadata()).get(REQUEST_ID_KEY)  # type: ignore[assignment]
        return self._request_id

    def cancel(self) -> None:
        """Ends the request on the server. Reading it, in any thread, then raises a GenerationCancelledError."""
        self._cancelled.set()
        self._stream.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()

    def _receive(self) -> generation_pb2.GenerateResponse | None:
        while True:
            try:
                response = next(self._stream, None)
                break
            except grpc.RpcError as rpc_error:
                delay_seconds = self._seconds_to_retry(rpc_error, is_cancelled=self._cancelled.is_set())
            self._restart(delay_seconds)
        return self._received(response)

    def _restart(self, delay_seconds: float) -> None:
        if self._cancelled.wait(delay_seconds):
            raise cancelled()
        self._stream = self._start()
        if self._cancelled.is_set():  # cancel() ran after the wait and did not know the new stream
            self._stream.cancel()
