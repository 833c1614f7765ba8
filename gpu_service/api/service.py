"""GenerationService: checks requests, hands them to the engine, and streams what it makes. It computes nothing."""

import asyncio
from collections.abc import AsyncIterator, Callable

import grpc
import structlog

from fiddler import rpc
from fiddler.v1 import generation_pb2, generation_pb2_grpc
from gpu_service.api import prompts
from gpu_service.api.calls import Calls
from gpu_service.api.event_queue import EventQueue
from gpu_service.api.responses import Responses
from gpu_service.api.serving import Loaded
from gpu_service.api.statuses import status_of
from gpu_service.api.validation import check_request_id, parse_request
from gpu_service.engine import request_metrics
from gpu_service.engine.request import Event, Request
from gpu_service.sampling.outputs import FinishReason

REQUEST_ID_KEY = "fiddler-request-id"
_MAX_UNREAD_EVENTS = 1024  # of each generation
_CLOCKS_DIFFER_SECONDS = 0.25
_STATUS_OF_LEAVING = {
    FinishReason.CANCELLED: grpc.StatusCode.CANCELLED,
    FinishReason.DEADLINE: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_log = structlog.get_logger(__name__)

Context = grpc.aio.ServicerContext[generation_pb2.GenerateRequest, generation_pb2.GenerateResponse]


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """Answers UNAVAILABLE until `loaded` is set, and while `unavailable` says why not."""

    def __init__(self) -> None:
        self.loaded: Loaded | None = None
        self.unavailable = "the service is starting"
        self.calls = Calls()

    async def Generate(  # noqa: N802
        self, request: generation_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[generation_pb2.GenerateResponse]:
        """Streams one request's generations."""
        if self.unavailable or self.loaded is None:
            request_metrics.refused(grpc.StatusCode.UNAVAILABLE.name)
            await context.abort(grpc.StatusCode.UNAVAILABLE, self.unavailable)
        loaded = self.loaded
        call = self.calls.add(context)

        def overflow() -> None:
            loaded.engine.cancel(generation)
            call.desert()

        events = EventQueue(_MAX_UNREAD_EVENTS * max(1, request.n), overflow)
        try:
            loaded.check_room()
            # in a thread, since a long text takes long to encode
            generation, responses = await asyncio.to_thread(_prepare, request, loaded, events.put)
            loaded.engine.submit(generation)
        except Exception as error:
            status = _explain(error)
            request_metrics.refused(status.code.name)
            await status.abort_async(context)
        request_metrics.submitted(generation)
        failure: str | None = None
        try:
            await context.send_initial_metadata(((REQUEST_ID_KEY, generation.request_id),))
            async for response in _stream(responses, events):
                yield response
        except grpc.aio.BaseError:
            raise  # the call has ended already
        except Exception as error:
            status = _explain(error)
            failure = status.code.name
            await status.abort_async(context)
        finally:
            loaded.engine.cancel(generation)
            if call.is_deserted:
                failure = grpc.StatusCode.RESOURCE_EXHAUSTED.name
            _record_end(generation, responses, failure, _why_left(context))

    async def Abort(  # noqa: N802
        self, request: generation_pb2.AbortRequest, context: Context
    ) -> generation_pb2.AbortResponse:
        """Ends a generation that another call streams."""
        loaded = await self._loaded(context)
        try:
            check_request_id(request.request_id)
        except rpc.StatusError as error:
            await error.abort_async(context)
        return generation_pb2.AbortResponse(aborted=loaded.engine.abort(request.request_id))

    async def Tokenize(  # noqa: N802
        self, request: generation_pb2.TokenizeRequest, context: Context
    ) -> generation_pb2.TokenizeResponse:
        """Turns text or a chat into token ids."""
        loaded = await self._loaded(context)
        try:
            return await asyncio.to_thread(_tokenize, request, loaded)
        except Exception as error:
            await _explain(error).abort_async(context)

    async def Detokenize(  # noqa: N802
        self, request: generation_pb2.DetokenizeRequest, context: Context
    ) -> generation_pb2.DetokenizeResponse:
        """Turns token ids into text."""
        loaded = await self._loaded(context)
        try:
            return await asyncio.to_thread(_detokenize, request, loaded)
        except Exception as error:
            await _explain(error).abort_async(context)

    async def GetModelInfo(  # noqa: N802
        self, request: generation_pb2.GetModelInfoRequest, context: Context
    ) -> generation_pb2.GetModelInfoResponse:
        """Tells about the model."""
        return (await self._loaded(context)).describe_model()

    async def GetServerInfo(  # noqa: N802
        self, request: generation_pb2.GetServerInfoRequest, context: Context
    ) -> generation_pb2.GetServerInfoResponse:
        """Tells about the server."""
        return (await self._loaded(context)).describe_server()

    async def _loaded(self, context: Context) -> Loaded:
        if self.loaded is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, self.unavailable)
        return self.loaded


def _prepare(
    request: generation_pb2.GenerateRequest, loaded: Loaded, emit: Callable[[Event], None]
) -> tuple[Request, Responses]:
    generation = parse_request(request, loaded.model, loaded.tokenizer, loaded.limits, emit)
    return generation, Responses(generation, request.echo, loaded.tokenizer)


def _explain(error: Exception) -> rpc.StatusError:
    """The status for what went wrong in a call; the log tells what nobody has foreseen."""
    status = status_of(error)
    if status.code is grpc.StatusCode.INTERNAL and not isinstance(error, rpc.StatusError):
        _log.error("call failed", error=str(error), exc_info=error)
    return status


async def _stream(responses: Responses, events: EventQueue) -> AsyncIterator[generation_pb2.GenerateResponse]:
    for response in responses.begin():
        yield response
    while responses.num_unfinished:
        for response in responses.of(await events.get()):
            yield response


def _why_left(context: Context) -> FinishReason:
    """Why a caller is gone before the end."""
    remaining = context.time_remaining()
    # a caller's deadline passes a little sooner on its own clock, which is the one that ends the call
    passed = remaining is not None and remaining <= _CLOCKS_DIFFER_SECONDS
    return FinishReason.DEADLINE if passed else FinishReason.CANCELLED


def _tokenize(request: generation_pb2.TokenizeRequest, loaded: Loaded) -> generation_pb2.TokenizeResponse:
    kind, tokenizer = request.WhichOneof("prompt"), loaded.tokenizer
    if kind is None:
        raise rpc.invalid_argument("prompt", "must be set: text or chat")
    if kind == "chat":
        if request.HasField("add_special_tokens"):
            raise rpc.invalid_argument("add_special_tokens", "must be unset with chat: the template has its own")
        token_ids = prompts.of_chat(request.chat, loaded.model, tokenizer)
    else:
        add_special_tokens = request.add_special_tokens or not request.HasField("add_special_tokens")
        token_ids = prompts.of_text(request.text, loaded.model, tokenizer, add_special_tokens)
    texts = [tokenizer.token_text(token_id) for token_id in token_ids]
    return generation_pb2.TokenizeResponse(token_ids=token_ids, tokens=texts)


def _detokenize(request: generation_pb2.DetokenizeRequest, loaded: Loaded) -> generation_pb2.DetokenizeResponse:
    if len(request.token_ids) > loaded.model.max_context:
        problem = f"at most {loaded.model.max_context}, the context, got {len(request.token_ids)}"
        raise rpc.invalid_argument("token_ids", problem)
    prompts.check_token_ids(request.token_ids, "token_ids", loaded.model)
    skip_special_tokens = request.skip_special_tokens or not request.HasField("skip_special_tokens")
    return generation_pb2.DetokenizeResponse(text=loaded.tokenizer.decode(request.token_ids, skip_special_tokens))


def _record_end(generation: Request, responses: Responses, failure: str | None, why_left: FinishReason) -> None:
    """Counts and logs how a request's generations ended.

    Args:
        generation: The request.
        responses: Those whose end was sent, and the number of others.
        failure: The status that it failed with; None where it did not.
        why_left: Why the caller left, if it did before the end.
    """
    reasons = {reason.value: count for reason, count in responses.finish_reasons.items()}
    status = failure or grpc.StatusCode.OK.name
    if responses.num_unfinished:
        reasons["error" if failure else why_left.value] = responses.num_unfinished
        status = failure or _STATUS_OF_LEAVING[why_left].name
    request_metrics.ended(generation, reasons, status)
    _log.info(
        "request ended",
        request=generation.number,
        request_id=generation.request_id,
        finish_reason=", ".join(reasons),
        status=status,
        prompt_tokens=len(generation.prompt),
        completion_tokens=responses.num_tokens,
    )
