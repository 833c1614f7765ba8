"""Sets the fields of protobuf messages from plain values, and names the field that a value does not fit."""

import json
import reprlib
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from client._statuses import invalid

_EXPECTED = {
    FieldDescriptor.TYPE_STRING: "text",
    FieldDescriptor.TYPE_DOUBLE: "a number",
    FieldDescriptor.TYPE_FLOAT: "a number",
    FieldDescriptor.TYPE_BOOL: "true or false",
    FieldDescriptor.TYPE_INT32: f"an integer from {-(2**31)} to {2**31 - 1}",
    FieldDescriptor.TYPE_UINT32: f"an integer from 0 to {2**32 - 1}",
    FieldDescriptor.TYPE_UINT64: f"an integer from 0 to {2**64 - 1}",
}


def set_field(message: Message, path: str, value: object, *, reported_as: str | None = None) -> None:
    """Sets the field at a path within a message.

    Raises:
        InvalidRequestError: The value does not fit the field. The error names reported_as, or else the path.
    """
    *parents, name = path.split(".")
    for parent in parents:
        message = getattr(message, parent)
    field = message.DESCRIPTOR.fields_by_name[name]
    try:
        _setter(message, field)(value)
    except (TypeError, ValueError, AttributeError) as error:
        problem = f"must be {_expected(field)}, got {reprlib.repr(value)}"
        raise invalid(reported_as or path, problem) from error


def json_text(value: object, path: str) -> str:
    """The value as JSON, on one line and with its keys in their order.

    Raises:
        InvalidRequestError: JSON cannot express it. The error names the path.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise invalid(path, f"must be what JSON can express, or its text, got {reprlib.repr(value)}") from error


def is_map(field: Any) -> bool:
    """Whether a field of a message is a map."""
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _setter(message: Message, field: Any) -> Callable[[Any], object]:
    if is_map(field):
        return lambda values: getattr(message, field.name).update(dict(values.items()))
    if field.is_repeated:
        return lambda values: getattr(message, field.name).extend(values)
    return lambda value: setattr(message, field.name, value)


def _expected(field: Any) -> str:
    if is_map(field):
        key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        return f"a dict, each key {_EXPECTED[key.type]}, each value {_EXPECTED[value.type]}"
    many = "a list, each item " if field.is_repeated else ""
    return many + _EXPECTED.get(field.type, f"a value for {field.name}")
