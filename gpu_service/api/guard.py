"""Guards all methods: INVALID_ARGUMENT for a message that protobuf cannot parse, and a bound on health watches."""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import aclosing
from typing import Any

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from fiddler import rpc
from fiddler.calls.undecodable import deserializer, inputs
from fiddler.calls.watches import Watches
from fiddler.v1 import generation_pb2

_SERVICES: tuple[Any, ...] = (
    generation_pb2.DESCRIPTOR.services_by_name["GenerationService"],
    health_pb2.DESCRIPTOR.services_by_name["Health"],
    reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
)
_WATCH = "/grpc.health.v1.Health/Watch"

Handler = Any  # a grpc.RpcMethodHandler, whose annotations are those of synchronous servers
Context = grpc.aio.ServicerContext[Any, Any]


class Guard(grpc.aio.ServerInterceptor):
    """Calls a handler only with messages that could be parsed, and with no more health watches than may be open."""

    def __init__(self, names: Collection[str], *further: Any) -> None:
        """Guards nothing yet.

        Args:
            names: The services whose health is known.
            further: The descriptors of services beside those that are always there.
        """
        self._inputs = inputs(*_SERVICES, *further)
        self._watches = Watches(names)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """The handler, guarded."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        # a handler that refuses reads no message, whatever kind its method is
        if handler is None or handler.request_deserializer is None or method not in self._inputs:
            return handler
        parse = deserializer(handler.request_deserializer, self._inputs[method])
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(_exchange(handler), parse, handler.response_serializer)
        if method == _WATCH:
            return grpc.unary_stream_rpc_method_handler(self._watch(handler), parse, handler.response_serializer)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(_stream(handler), parse, handler.response_serializer)
        return grpc.unary_unary_rpc_method_handler(_answer(handler), parse, handler.response_serializer)

    def _watch(self, handler: Handler) -> Handler:
        async def watch(request: Any, context: Context) -> None:
            await _check(request, context)
            try:
                self._watches.enter()
            except rpc.StatusError as error:
                await error.abort_async(context)
            try:
                await handler.unary_stream(self._watches.known(request), context)
            finally:
                self._watches.leave()

        return watch


def _answer(handler: Handler) -> Handler:
    async def answer(request: Any, context: Context) -> Any:
        await _check(request, context)
        answering = handler.unary_unary(request, context)
        del request, context  # see abort_async
        return await answering

    return answer


def _stream(handler: Handler) -> Handler:
    async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
        await _check(request, context)
        streaming = handler.unary_stream(request, context)
        del request, context  # see abort_async
        async with aclosing(streaming) as responses:
            async for response in responses:
                yield response

    return stream


def _exchange(handler: Handler) -> Handler:
    async def checked(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        async for request in requests:
            await _check(request, context)
            yield request

    async def exchange(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        async with aclosing(handler.stream_stream(checked(requests, context), context)) as responses:
            async for response in responses:
                yield response

    return exchange


async def _check(request: Any, context: Context) -> None:
    if isinstance(request, rpc.StatusError):
        await request.abort_async(context)
