"""Answers INVALID_ARGUMENT, naming the field, to a message that protobuf cannot parse. gRPC alone answers INTERNAL.

In an otherwise valid message protobuf refuses only text that is not UTF-8, and does not report which. Such a message is
parsed again with its texts as bytes.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from functools import cache
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from google.protobuf.message import DecodeError, Message

from fiddler import rpc
from fiddler.v1 import generation_pb2

_SERVICE = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"]
_PREFIX = f"/{_SERVICE.full_name}/"

Handler = Any  # a grpc.RpcMethodHandler, whose annotations are those of synchronous servers


class MalformedMessageInterceptor(grpc.aio.ServerInterceptor):
    """Answers INVALID_ARGUMENT to messages of GenerationService that cannot be parsed."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Calls the handler only with messages that could be parsed."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(_PREFIX):
            return handler
        return _guarded(handler, _SERVICE.methods_by_name[method.removeprefix(_PREFIX)].input_type)


def problem_of(descriptor: Descriptor, data: bytes) -> rpc.StatusError:
    """The status for a message of that type that could not be parsed."""
    twin = _twin(descriptor.full_name)()
    try:
        twin.ParseFromString(data)
    except DecodeError:
        return rpc.invalid_argument(descriptor.name, f"the message cannot be parsed as a {descriptor.full_name}")
    field = next(_not_utf8(twin, descriptor, ""), descriptor.name)
    return rpc.invalid_argument(field, "must be UTF-8")


def _guarded(handler: Handler, descriptor: Descriptor) -> Handler:
    parse: Callable[[bytes], Any] = handler.request_deserializer

    def deserialize(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            return problem_of(descriptor, data)

    async def answer(request: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> Any:
        if isinstance(request, rpc.StatusError):
            await request.abort_async(context)
        return await handler.unary_unary(request, context)

    async def stream(request: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> AsyncIterator[Any]:
        if isinstance(request, rpc.StatusError):
            await request.abort_async(context)
        async with aclosing(handler.unary_stream(request, context)) as responses:
            async for response in responses:
                yield response

    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(stream, deserialize, handler.response_serializer)
    return grpc.unary_unary_rpc_method_handler(answer, deserialize, handler.response_serializer)


@cache
def _twin(name: str) -> type[Message]:
    """The message type of that name with bytes for every text: both are encoded alike."""
    pool = descriptor_pool.DescriptorPool()
    _add_twin(pool, generation_pb2.DESCRIPTOR, set())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


def _add_twin(pool: descriptor_pool.DescriptorPool, file: FileDescriptor, added: set[str]) -> None:
    """Adds a file, after those that it imports."""
    added.add(file.name)
    for dependency in file.dependencies:
        if dependency.name not in added:
            _add_twin(pool, dependency, added)
    proto = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(proto)
    for message in proto.message_type:
        for field in message.field:
            if field.type == FieldDescriptor.TYPE_STRING:
                field.type = descriptor_pb2.FieldDescriptorProto.TYPE_BYTES
    pool.Add(proto)


def _not_utf8(twin: Message, descriptor: Descriptor, path: str) -> Iterator[str]:
    """Yields the paths of texts that are not UTF-8."""
    for twin_field, value in twin.ListFields():
        field = descriptor.fields_by_name[twin_field.name]
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            continue  # a map from numbers to numbers
        values = enumerate(value) if field.is_repeated else [(None, value)]
        for position, each in values:
            here = f"{path}{field.name}" + ("" if position is None else f"[{position}]")
            if field.message_type is not None:
                yield from _not_utf8(each, field.message_type, f"{here}.")
            elif field.type == FieldDescriptor.TYPE_STRING and not _is_utf8(each):
                yield here


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
