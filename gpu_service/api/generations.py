"""Answers calls: checks requests, hands them to the engine and streams what it makes. It knows no transport.

A front, such as service.py for gRPC, turns its transport's messages into those of protos/fiddler/v1 and back, and
reports a CallError in its transport's way.
"""

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import structlog

from fiddler.v1 import generation_pb2
from gpu_service.api.event_queue import EventQueue
from gpu_service.api.requests import prompts
from gpu_service.api.requests.validation import check_request_id, parse_request
from gpu_service.api.responses import Responses
from gpu_service.api.serving import ServedModel
from gpu_service.engine import request_metrics
from gpu_service.engine.generation import Answer
from gpu_service.engine.request import Request
from gpu_service.errors import CallError, ComputationError, SlowReaderError, UnavailableError, panics_as_errors
from gpu_service.sampling.outputs import FinishReason
from gpu_service.text.prompt_threads import PromptThreads
from gpu_service.tracing import Tracing

_MAX_UNREAD_EVENTS = 1024  # of each generation
_OK = "OK"
_CODE_OF_LEAVING = {FinishReason.CANCELLED: "CANCELLED", FinishReason.DEADLINE: "DEADLINE_EXCEEDED"}
_log = structlog.get_logger(__name__)


class Generations:
    """Every front's calls come here.

    Attributes:
        served: What answers; None until the model is loaded. Set by the server, as is `unavailable`.
        unavailable: Why no generation is accepted; empty if one is.
        tracing: Makes spans of requests; None makes none. Set by the server.
    """

    def __init__(self) -> None:
        self.served: ServedModel | None = None
        self.unavailable = "the service is starting"
        self.tracing: Tracing | None = None
        self._threads = PromptThreads()

    def check_available(self) -> None:
        """Refuses a generation while the service starts or stops.

        Raises:
            UnavailableError: The text says why.
        """
        if self.unavailable or self.served is None:
            request_metrics.refused(UnavailableError.code)
            raise UnavailableError(self.unavailable)

    def ready(self) -> ServedModel:
        """What answers.

        Raises:
            UnavailableError: Nothing is loaded yet.
        """
        if self.served is None:
            raise UnavailableError(self.unavailable)
        return self.served

    async def submit(
        self,
        message: generation_pb2.GenerateRequest,
        on_overflow: Callable[[], None],
        deadline: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> "GenerationStream":
        """Checks a request and hands it to the engine.

        Args:
            message: The request.
            on_overflow: Called, from the engine's thread, if the caller leaves too many responses unread. The stream
                then fails with a SlowReaderError, unless it is never read again.
            deadline: When the caller leaves, on the clock of time.monotonic(); None: never.
            headers: Those of tracing.HEADERS that the call has.

        Returns:
            The stream of its responses, which must be ended.

        Raises:
            CallError: The request is wrong, or there is no room for it.
        """
        stream = GenerationStream(
            self.ready(), message, on_overflow=on_overflow, deadline=deadline, threads=self._threads
        )
        if self.tracing:
            stream.trace(self.tracing, headers or {})
        try:
            with _call_errors_only(message.request_id):
                await stream.submit()
        except CallError as error:
            request_metrics.refused(error.code)
            raise
        request_metrics.submitted(stream.request)
        return stream

    def abort(self, message: generation_pb2.AbortRequest) -> generation_pb2.AbortResponse:
        """Ends requests that other calls stream.

        Raises:
            CallError: An id is not one that a request may have, or nothing is loaded yet.
        """
        engine = self.ready().engine
        ids = dict.fromkeys(message.request_ids)
        for position, request_id in enumerate(message.request_ids):
            check_request_id(request_id, f"request_ids[{position}]")
        if message.request_id or not ids:
            check_request_id(message.request_id)
            ids[message.request_id] = None
        aborted = [request_id for request_id in ids if engine.abort(request_id)]
        return generation_pb2.AbortResponse(aborted=bool(aborted), aborted_ids=aborted)

    async def tokenize(self, message: generation_pb2.TokenizeRequest) -> generation_pb2.TokenizeResponse:
        """Turns text or a chat into token ids.

        Raises:
            CallError: A field is wrong, or nothing is loaded yet.
        """
        served = self.ready()
        with _call_errors_only():
            parse = partial(prompts.tokenize, message, served.model, served.tokenizer)
            return await self._threads.run(parse, is_chat=message.WhichOneof("prompt") == "chat")

    async def detokenize(self, message: generation_pb2.DetokenizeRequest) -> generation_pb2.DetokenizeResponse:
        """Turns token ids into text.

        Raises:
            CallError: A field is wrong, or nothing is loaded yet.
        """
        served = self.ready()
        with _call_errors_only():
            return await asyncio.to_thread(prompts.detokenize, message, served.model, served.tokenizer)


class GenerationStream:
    """One request's responses."""

    def __init__(
        self,
        served: ServedModel,
        message: generation_pb2.GenerateRequest,
        *,
        on_overflow: Callable[[], None],
        deadline: float | None,
        threads: PromptThreads,
    ) -> None:
        self._served = served
        self._priority, self._deadline = message.priority, deadline
        self._message: generation_pb2.GenerateRequest | None = message
        self._threads = threads
        self._on_overflow = on_overflow
        self._events = EventQueue(_MAX_UNREAD_EVENTS * max(1, message.n), _weakly(self._overflow))
        self._tracing: Tracing | None = None
        self._headers: Mapping[str, str] = {}
        self._failure: str | None = None
        self._has_overflowed = False
        self.request: Request
        """What the engine computes. Set, as are `_responses` and `_answer`, by `submit`."""
        self._responses: Responses
        self._answer: Answer

    def trace(self, tracing: Tracing, headers: Mapping[str, str]) -> None:
        """Makes spans of this request."""
        self._tracing, self._headers = tracing, headers

    async def submit(self) -> None:
        """See Generations.submit, which also counts what is refused. To be called once."""
        self._served.check_room(self._priority, self._deadline)
        # in a thread, since a long text takes long to encode
        message, self._message = self._message, None  # the engine's request has all that is needed of it
        assert message is not None
        is_chat = message.WhichOneof("prompt") == "chat"
        parsing = self._threads.run(partial(self._parse, message), is_chat=is_chat)
        del message
        self.request, self._responses = await parsing
        if self._tracing:
            self._tracing.begin(self.request, self._headers)
        try:
            self._answer = self._served.engine.submit(self.request)
        except CallError:
            if self._tracing:
                self._tracing.discard(self.request)
            raise

    async def responses(self) -> AsyncIterator[generation_pb2.GenerateResponse]:
        """Yields the responses until all generations have ended.

        Raises:
            CallError: The request failed.
        """
        try:
            with _call_errors_only(self.request.request_id):
                for response in self._responses.begin():
                    yield response
                while self._responses.num_unfinished:
                    for response in self._responses.of(await self._events.get()):
                        yield response
        except CallError as error:
            self._failure = error.code
            raise

    def end(self, left: FinishReason) -> None:
        """Ends the request if it has not ended; counts and logs how its generations ended.

        Args:
            left: Why the caller left, if it did so before the end: CANCELLED or DEADLINE.
        """
        self._served.engine.cancel(self.request)
        failure = SlowReaderError.code if self._has_overflowed else self._failure
        reasons = {reason.value: count for reason, count in self._responses.finish_reasons.items()}
        status = failure or _OK
        if unfinished := self._responses.num_unfinished:
            reasons["error" if failure else left.value] = unfinished
            status = failure or _CODE_OF_LEAVING[left]
        request_metrics.ended(self._answer, reasons, status, num_tokens=self._responses.num_tokens)
        if self._tracing:
            self._tracing.end(self._answer, reasons, status, num_tokens=self._responses.num_tokens)
        _log.info(
            "request ended",
            request_id=self.request.request_id,
            finish_reason=", ".join(reasons),
            status=status,
            prompt_tokens=len(self.request.prompt),
            completion_tokens=self._responses.num_tokens,
        )

    def _parse(self, message: generation_pb2.GenerateRequest | None) -> tuple[Request, Responses]:
        served = self._served
        assert message is not None
        request = parse_request(
            message,
            model=served.model,
            tokenizer=served.tokenizer,
            limits=served.limits,
            emit=self._events.put,
            longest=served.engine.longest,
            deadline=self._deadline,
        )
        return request, Responses(request, message, served.tokenizer)

    def _overflow(self) -> None:
        """Called by the engine's thread."""
        self._has_overflowed = True
        self._served.engine.cancel(self.request)
        self._on_overflow()


def _weakly(method: Callable[[], None]) -> Callable[[], None]:
    """A method of an object that may be gone: without it the object and what calls the method would be a cycle."""
    reference = weakref.WeakMethod(method)

    def call() -> None:
        if act := reference():
            act()

    return call


@contextmanager
def _call_errors_only(request_id: str = "") -> Iterator[None]:
    """Turns an error that nothing foresees into one that gives nothing away, and logs it."""
    try:
        with panics_as_errors():
            yield
    except CallError:
        raise
    except Exception as error:
        named = {"request_id": request_id} if request_id else {}
        _log.error("call failed", error=str(error), exc_info=error, **named)
        raise ComputationError from error
