"""GenerationService over gRPC: hands each call to generations.py and reports its errors as statuses."""

import time
from collections.abc import AsyncIterator

import grpc

from fiddler.v1 import generation_pb2, generation_pb2_grpc
from gpu_service import tracing
from gpu_service.api.calls import Calls
from gpu_service.api.generations import Generations
from gpu_service.api.statuses import status_of
from gpu_service.errors import CallError
from gpu_service.sampling.outputs import FinishReason

REQUEST_ID_KEY = "fiddler-request-id"
_CLOCKS_DIFFER_SECONDS = 0.25

Context = grpc.aio.ServicerContext[generation_pb2.GenerateRequest, generation_pb2.GenerateResponse]


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """The service's handlers. `calls` counts the generations under way, which `generations` answers."""

    def __init__(self, generations: Generations) -> None:
        self.generations = generations
        self.calls = Calls()

    async def Generate(  # noqa: N802
        self, request: generation_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[generation_pb2.GenerateResponse]:
        """Streams one request's generations."""
        stream = aborting = None
        try:
            self.generations.check_available()
            call = self.calls.add(context)
            submitting = self.generations.submit(request, call.desert, _deadline(context), _headers(context))
            del request, call
            stream = await submitting
            await context.send_initial_metadata(((REQUEST_ID_KEY, stream.request.request_id),))
            async for response in stream.responses():
                yield response
        except CallError as error:
            aborting = status_of(error).abort_async(context)
        finally:
            if stream is not None:
                stream.end(_why_left(context))
            stream = context = None  # type: ignore[assignment] # see abort_async
        if aborting:
            await aborting

    async def Abort(  # noqa: N802
        self, request: generation_pb2.AbortRequest, context: Context
    ) -> generation_pb2.AbortResponse:
        """Ends a generation that another call streams."""
        try:
            return self.generations.abort(request)
        except CallError as error:
            aborting = status_of(error).abort_async(context)
        del request, context  # see abort_async
        return await aborting

    async def Tokenize(  # noqa: N802
        self, request: generation_pb2.TokenizeRequest, context: Context
    ) -> generation_pb2.TokenizeResponse:
        """Turns text or a chat into token ids."""
        try:
            return await self.generations.tokenize(request)
        except CallError as error:
            aborting = status_of(error).abort_async(context)
        del request, context  # see abort_async
        return await aborting

    async def Detokenize(  # noqa: N802
        self, request: generation_pb2.DetokenizeRequest, context: Context
    ) -> generation_pb2.DetokenizeResponse:
        """Turns token ids into text."""
        try:
            return await self.generations.detokenize(request)
        except CallError as error:
            aborting = status_of(error).abort_async(context)
        del request, context  # see abort_async
        return await aborting

    async def GetModelInfo(  # noqa: N802
        self, request: generation_pb2.GetModelInfoRequest, context: Context
    ) -> generation_pb2.GetModelInfoResponse:
        """Describes the model."""
        try:
            return self.generations.ready().describe_model()
        except CallError as error:
            aborting = status_of(error).abort_async(context)
        del request, context  # see abort_async
        return await aborting

    async def GetServerInfo(  # noqa: N802
        self, request: generation_pb2.GetServerInfoRequest, context: Context
    ) -> generation_pb2.GetServerInfoResponse:
        """Describes the server and its load."""
        try:
            return self.generations.ready().describe_server()
        except CallError as error:
            aborting = status_of(error).abort_async(context)
        del request, context  # see abort_async
        return await aborting


def _deadline(context: Context) -> float | None:
    """When a caller leaves, on the clock of time.monotonic(); None: never."""
    remaining = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining


def _headers(context: Context) -> dict[str, str]:
    """Which trace the call belongs to."""
    return {key: str(value) for key, value in context.invocation_metadata() or () if key in tracing.HEADERS}


def _why_left(context: Context) -> FinishReason:
    """Why a caller is gone before the end."""
    remaining = context.time_remaining()
    # a caller's deadline passes a little sooner on its own clock, which is the one that ends the call
    passed = remaining is not None and remaining <= _CLOCKS_DIFFER_SECONDS
    return FinishReason.DEADLINE if passed else FinishReason.CANCELLED
