"""The synchronous client. What it shares with its asynchronous twin is in _base.py."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Protocol, Self, TypeVar, Unpack

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

_Question = TypeVar("_Question", bound=Message)
_Answer = TypeVar("_Answer")


class Client(BaseClient):
    """A connection to a GPU service.

    Threads may share it. Leaving its `with` block, or `close()`, ends its generations.
    """

    def __init__(self, target: str = DEFAULT_TARGET, **options: Unpack[ConnectionOptions]) -> None:
        """Prepares a connection, which is made when it is first used.

        Args:
            target: Where the GPU service listens: HOST:PORT or unix:PATH.
            options: How to connect, see ConnectionOptions.

        Raises:
            InvalidRequestError: The target is no address, or an option is wrong.
        """
        super().__init__(target, **options)
        if self._credentials is None:
            self._channel = grpc.insecure_channel(self.target, self._options)
        else:
            self._channel = grpc.secure_channel(self.target, self._credentials, self._options)
        self._stub = generation_pb2_grpc.GenerationServiceStub(self._channel)

    def generate(self, prompt: str | Sequence[int], **options: Unpack[GenerateOptions]) -> "Generation":
        """Continues a prompt. What goes wrong on the way is raised where the generation's messages are read.

        Args:
            prompt: What to continue: text, or token ids that are taken as they are.
            options: How, see GenerateOptions.

        Raises:
            InvalidRequestError: A value cannot even be sent.
        """
        return self._generate(build_request(prompt, options), options)

    def chat(self, messages: Sequence[ChatMessage], **options: Unpack[GenerateOptions]) -> "Generation":
        """Answers the last message of a conversation, by the model's chat template. Otherwise as generate().

        Args:
            messages: The messages so far: [{"role": "user", "content": "Who are you?"}].
            options: How, see GenerateOptions.

        Raises:
            InvalidRequestError: A value cannot even be sent.
        """
        return self._generate(build_chat_request(messages, options), options)

    def abort(self, request_id: str, *, timeout: float | None = None) -> bool:
        """Ends a generation, whoever reads it: that gets its end, with FinishReason.CANCELLED.

        Returns:
            Whether it was under way, and is no longer.

        Raises:
            ClientError: The call failed.
        """
        return self._ask(self._stub.Abort, build_abort_request(request_id), timeout).aborted

    def tokenize(
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
        return tokens_from(self._ask(self._stub.Tokenize, question, timeout))

    def detokenize(
        self, token_ids: Sequence[int], *, skip_special_tokens: bool | None = None, timeout: float | None = None
    ) -> str:
        """Turns token ids into text.

        Raises:
            ClientError: The call failed.
        """
        question = build_detokenize_request(token_ids, skip_special_tokens)
        return self._ask(self._stub.Detokenize, question, timeout).text

    def model_info(self, *, timeout: float | None = None) -> ModelInfo:
        """Asks about the model that is served.

        Raises:
            ClientError: The call failed.
        """
        return model_info_from(self._ask(self._stub.GetModelInfo, generation_pb2.GetModelInfoRequest(), timeout))

    def server_info(self, *, timeout: float | None = None) -> ServerInfo:
        """Asks about the server and what it is doing.

        Raises:
            ClientError: The call failed.
        """
        return server_info_from(self._ask(self._stub.GetServerInfo, generation_pb2.GetServerInfoRequest(), timeout))

    def close(self) -> None:
        """Closes the connection and ends what still runs on it."""
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

        def start() -> _Call:
            if self._closed:
                raise cancelled()
            return self._stub.Generate(request, **self._call_options(retries.remaining_seconds()))

        return Generation(request, retries, start)

    def _ask(
        self, method: "grpc.UnaryUnaryMultiCallable[_Question, _Answer]", question: _Question, timeout: float | None
    ) -> _Answer:
        self._check_size(question)
        retries = self._retries(timeout)
        while True:
            self._check_open()
            try:
                return method(question, **self._call_options(retries.remaining_seconds()))
            except grpc.RpcError as rpc_error:
                error = error_from(rpc_error)
                delay_seconds = retries.delay_seconds(error)
                if delay_seconds is None:
                    raise error from rpc_error
            time.sleep(delay_seconds)


class _Call(Protocol):
    """What gRPC returns for a stream of responses; it has no public name there."""

    def __next__(self) -> generation_pb2.GenerateResponse: ...

    def cancel(self) -> bool: ...

    def initial_metadata(self) -> Sequence[tuple[str, str | bytes]]: ...


class Generation(BaseGeneration):
    """The messages of one request, as they come.

    Iterating yields what GenerateOptions asked for: PromptLogprobs, then GenerationChunk events or, of a beam search,
    BestBeam events, and a Complete for each generation. It raises a ClientError if the request fails. Leaving the
    `with` block before the end cancels the request on the server.
    """

    def __init__(self, request: generation_pb2.GenerateRequest, retries: Retries, start: Callable[[], _Call]) -> None:
        super().__init__(request, retries)
        self._start = start
        self._cancelled = threading.Event()
        self._call = start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        for response in self.responses():
            if (event := event_from(response)) is not None:
                return event
        raise StopIteration

    def responses(self) -> Iterator[generation_pb2.GenerateResponse]:
        """The messages as protobuf has them, for those who pass them on. Each message is read once, here or above."""
        while (response := self._receive()) is not None:
            yield response

    def text(self) -> str:
        """Reads to the end and returns the text that was still to come: of the first generation, where several are."""
        return self.texts()[0]

    def texts(self) -> list[str]:
        """Reads to the end and returns the texts, still to come, of all generations, by index."""
        return texts_of(self, self.num_generations)

    def request_id(self) -> str | None:
        """The request's name, for abort(); waits until the server has taken the request. None where it did not."""
        if self._request_id is None:
            self._request_id = dict(self._call.initial_metadata()).get(REQUEST_ID_KEY)  # type: ignore[assignment]
        return self._request_id

    def cancel(self) -> None:
        """Ends the request on the server. Whoever reads it, in any thread, gets a GenerationCancelledError."""
        self._cancelled.set()
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()

    def _receive(self) -> generation_pb2.GenerateResponse | None:
        while True:
            try:
                response = next(self._call, None)
                break
            except grpc.RpcError as rpc_error:
                error = self._judged(error_from(rpc_error), self._cancelled.is_set())
                delay_seconds = self._delay_seconds(error)
                if delay_seconds is None:
                    raise error from rpc_error
            self._restart(delay_seconds)
        if response is None:
            self._check_complete()
        else:
            self._note(response)
        return response

    def _restart(self, delay_seconds: float) -> None:
        if self._cancelled.wait(delay_seconds):
            raise cancelled()
        self._call = self._start()
        if self._cancelled.is_set():  # between the wait and the new call, which nobody else knew yet
            self._call.cancel()
