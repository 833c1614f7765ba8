"""Answers INVALID_ARGUMENT, naming the field, to a message that protobuf cannot parse. gRPC alone answers INTERNAL.

In an otherwise valid message protobuf refuses only text that is not UTF-8, and does not report which. Such a message is
parsed again with its texts as bytes.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message

from fiddler import rpc


def inputs(*services: ServiceDescriptor) -> dict[str, Descriptor]:
    """The type of the messages that each method takes, by the method's path, e.g. "/grpc.health.v1.Health/Check"."""
    return {
        f"/{service.full_name}/{method.name}": method.input_type for service in services for method in service.methods
    }


def deserializer(parse: Callable[[bytes], Any], descriptor: Descriptor) -> Callable[[bytes], Any]:
    """A deserializer that returns a StatusError in place of a message that cannot be parsed.

    Args:
        parse: The one that gRPC would use.
        descriptor: The messages' type.
    """

    def deserialize(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            return problem_of(descriptor, data)

    return deserialize


def problem_of(descriptor: Descriptor, data: bytes) -> rpc.StatusError:
    """The status for a message of that type that could not be parsed."""
    twin = _twin(descriptor)()
    try:
        twin.ParseFromString(data)
    except DecodeError:
        return rpc.invalid_argument(descriptor.name, f"the message cannot be parsed as a {descriptor.full_name}")
    field = next(_not_utf8(twin, descriptor, ""), descriptor.name)
    return rpc.invalid_argument(field, "must be UTF-8")


@cache
def _twin(descriptor: Descriptor) -> type[Message]:
    """The message type with bytes for every text: both are encoded alike."""
    pool = descriptor_pool.DescriptorPool()
    _add_twin(pool, descriptor.file, set())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(descriptor.full_name))


def _add_twin(pool: descriptor_pool.DescriptorPool, file: FileDescriptor, added: set[str]) -> None:
    """Adds a file, after those that it imports."""
    added.add(file.name)
    for dependency in file.dependencies:
        if dependency.name not in added:
            _add_twin(pool, dependency, added)
    proto = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(proto)
    for message in proto.message_type:
        _take_bytes(message)
    pool.Add(proto)


def _take_bytes(message: descriptor_pb2.DescriptorProto) -> None:
    for field in message.field:
        if field.type == FieldDescriptor.TYPE_STRING:
            field.type = descriptor_pb2.FieldDescriptorProto.TYPE_BYTES
    for nested in message.nested_type:
        if not nested.options.map_entry:  # whose keys cannot be bytes
            _take_bytes(nested)


def _not_utf8(twin: Message, descriptor: Descriptor, path: str) -> Iterator[str]:
    """Yields the paths of texts that are not UTF-8."""
    for twin_field, value in twin.ListFields():
        field = descriptor.fields_by_name[twin_field.name]
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            continue  # its keys cannot be read as bytes
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
