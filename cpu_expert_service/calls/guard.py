"""Guards all methods: what a caller may hold of the service's threads, and INVALID_ARGUMENT for undecodable messages.

A thread serves one call, and waits for its messages. Streams of layers have threads of their own number; so do health
checks, and all other calls together. Whatever one kind of call does, the others are served.
"""

from collections.abc import Callable, Collection, Iterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from cpu_expert_service.calls.slots import Slots
from fiddler import rpc
from fiddler.calls.undecodable import deserializer, inputs
from fiddler.calls.watches import Watches
from fiddler.v1 import experts_pb2

NUM_HEALTH_SLOTS = 32
NUM_OTHER_SLOTS = 4
_SPARE_THREADS = 4
"""For calls that are refused, which need one for a moment."""

_EXPERTS = experts_pb2.DESCRIPTOR.services_by_name["ExpertService"]
_SERVICES: tuple[Any, ...] = (
    _EXPERTS,
    health_pb2.DESCRIPTOR.services_by_name["Health"],
    reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
)
_RUN = f"/{_EXPERTS.full_name}/Run"
_HEALTH = "/grpc.health.v1.Health/"
_WATCH = f"{_HEALTH}Watch"

Handler = Any  # a grpc.RpcMethodHandler, whose published type lacks its fields


def num_threads(max_streams: int) -> int:
    """The threads that a server needs so that every call which is not refused has one."""
    return max_streams + NUM_HEALTH_SLOTS + NUM_OTHER_SLOTS + _SPARE_THREADS


class Guard(grpc.ServerInterceptor):
    """Bounds the calls of each kind. The servicer of Run bounds its streams itself."""

    def __init__(self, names: Collection[str]) -> None:
        """Guards nothing yet.

        Args:
            names: The services whose health is known.
        """
        self._inputs = inputs(*_SERVICES)
        self._watches = Watches(names)
        self._health = Slots("health checks", NUM_HEALTH_SLOTS)
        self._others = Slots("calls other than Run", NUM_OTHER_SLOTS)

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """The handler, guarded.

        One of a single message becomes one of a stream, whose messages are read by the handler and not before it: its
        slot is then taken first.
        """
        handler = continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method not in self._inputs:
            return handler
        parse, serialize = deserializer(handler.request_deserializer, self._inputs[method]), handler.response_serializer
        if method == _RUN:
            return grpc.stream_stream_rpc_method_handler(_parsed(handler.stream_stream), parse, serialize)
        slots = self._health if method.startswith(_HEALTH) else self._others
        if method == _WATCH:
            return grpc.stream_stream_rpc_method_handler(self._watch(handler.unary_stream, slots), parse, serialize)
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(_exchange(handler.stream_stream, slots), parse, serialize)
        return grpc.stream_unary_rpc_method_handler(_answer(handler.unary_unary, slots), parse, serialize)

    def _watch(self, handler: Callable[..., None], slots: Slots) -> Callable[..., None]:
        def watch(requests: Iterator[Any], context: grpc.ServicerContext, send: Callable[[Any], None]) -> None:
            try:
                with slots.take(context) as slot:
                    request = _only(slot.messages(requests))
                self._watches.enter()
            except rpc.StatusError as error:
                error.abort(context)
            if not context.add_callback(self._watches.leave):  # the call has ended meanwhile
                self._watches.leave()
                return
            handler(self._watches.known(request), context, send)

        # as grpc_health's own: what it sends later needs no thread
        watch.experimental_non_blocking = True  # type: ignore[attr-defined]
        return watch


def _parsed(handler: Callable[..., Any]) -> Callable[..., Any]:
    def messages(requests: Iterator[Any]) -> Iterator[Any]:
        for request in requests:
            if isinstance(request, rpc.StatusError):
                raise request
            yield request

    return lambda requests, context: handler(messages(requests), context)


def _answer(handler: Callable[..., Any], slots: Slots) -> Callable[..., Any]:
    def answer(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        try:
            with slots.take(context) as slot:
                return handler(_only(slot.messages(requests)), context)
        except rpc.StatusError as error:
            error.abort(context)

    return answer


def _exchange(handler: Callable[..., Any], slots: Slots) -> Callable[..., Any]:
    def exchange(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        try:
            with slots.take(context) as slot:
                yield from handler(slot.messages(requests), context)
        except rpc.StatusError as error:
            error.abort(context)

    return exchange


def _only(messages: Iterator[Any]) -> Any:
    """The one message of a call.

    Raises:
        StatusError: There is none.
    """
    for message in messages:
        return message
    raise rpc.StatusError(grpc.StatusCode.INVALID_ARGUMENT, "the call has no message")
