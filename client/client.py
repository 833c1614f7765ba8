"""The synchronous client. What it shares with its asynchronous twin is in _base.py."""

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Protocol, Self, TypeVar, Unpack

import grpc

from client._base import DEFAULT_TARGET, BaseClient, BaseGeneration, ConnectionOptions
from client._messages import Chunk, Complete, ModelInfo, ServerInfo, event_from, model_info_from, server_info_from
from client._statuses import error_from
from fiddler.v1 import generation_pb2, generation_pb2_grpc

_Question = TypeVar("_Question")
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
            InvalidRequestError: The target is no address.
        """
        super().__init__(target, **options)
        self._channel = grpc.insecure_channel(self.target, self._options)
        self._stub = generation_pb2_grpc.GenerationServiceStub(self._channel)

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
    ) -> "Generation":
        """Starts a generation. What goes wrong on the way is raised where its messages are read.

        Args:
            prompt: What to continue: text, or token ids that are taken as they are.
            max_tokens: The most tokens to generate. None: the server's default.
            temperature: 0 takes the likeliest token, above 0 draws. None, here and below: the model's own.
            top_k: Draw from the k likeliest tokens only; 0: from all.
            top_p: Draw from the smallest set of tokens whose probabilities sum to this or more.
            seed: The seed of this request's random numbers. None: a different one each time.
            stop_token_ids: Token ids that end the generation, besides the model's own.
            timeout: The most seconds that all of it may take. None: no limit.

        Raises:
            InvalidRequestError: A value cannot even be sent.
        """
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
        return Generation(self._stub.Generate(request, **self._call_options(timeout)))

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

    def _ask(
        self, method: "grpc.UnaryUnaryMultiCallable[_Question, _Answer]", question: _Question, timeout: float | None
    ) -> _Answer:
        self._check_open()
        try:
            return method(question, **self._call_options(timeout))
        except grpc.RpcError as error:
            raise error_from(error) from error


class _Call(Protocol):
    """What gRPC returns for a stream of responses; it has no public name there."""

    def __next__(self) -> generation_pb2.GenerateResponse: ...

    def cancel(self) -> bool: ...


class Generation(BaseGeneration):
    """The messages of one generation, as they come.

    Iterating yields Chunk after Chunk, then one Complete, and raises a ClientError where the generation fails. Leaving
    its `with` block before the end cancels it on the server.
    """

    def __init__(self, call: _Call) -> None:
        super().__init__()
        self._call = call

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Chunk | Complete:
        for response in self.responses():
            if (event := event_from(response)) is not None:
                return event
        raise StopIteration

    def responses(self) -> Iterator[generation_pb2.GenerateResponse]:
        """The messages as protobuf has them, for those who pass them on. Each message is read once, here or above."""
        while (response := self._receive()) is not None:
            yield response

    def text(self) -> str:
        """Reads to the end and returns the text that was still to come."""
        return "".join(event.text for event in self if isinstance(event, Chunk))

    def cancel(self) -> None:
        """Ends the generation on the server. Whoever reads it, in any thread, gets a GenerationCancelledError."""
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()

    def _receive(self) -> generation_pb2.GenerateResponse | None:
        try:
            response = next(self._call, None)
        except grpc.RpcError as error:
            raise error_from(error) from error
        if response is None:
            self._check_complete()
        else:
            self._note(response)
        return response
