"""A request from plain arguments. What protobuf refuses is named here; what values mean, the server judges."""

import reprlib
from collections.abc import Sequence

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from client._statuses import invalid
from fiddler.v1 import generation_pb2

_EXPECTED = {
    FieldDescriptor.TYPE_STRING: "text",
    FieldDescriptor.TYPE_DOUBLE: "a number",
    FieldDescriptor.TYPE_FLOAT: "a number",
    FieldDescriptor.TYPE_INT32: f"an integer from {-(2**31)} to {2**31 - 1}",
    FieldDescriptor.TYPE_UINT32: f"an integer from 0 to {2**32 - 1}",
    FieldDescriptor.TYPE_UINT64: f"an integer from 0 to {2**64 - 1}",
}


def build_request(
    prompt: str | Sequence[int],
    *,
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop_token_ids: Sequence[int] = (),
) -> generation_pb2.GenerateRequest:
    """Builds a request. Arguments that are None stay unset: the model's own values apply.

    Raises:
        InvalidRequestError: A value does not fit its field.
    """
    request = generation_pb2.GenerateRequest()
    if isinstance(prompt, bytes | bytearray):  # a sequence of integers to Python, and surely not what was meant
        raise invalid("prompt", "must be text or a sequence of token ids, got bytes")
    if isinstance(prompt, str):
        _set(request, "text", prompt)
    else:
        request.token_ids.SetInParent()  # an empty list is still a prompt of ids, which the server can then refuse
        _set(request, "token_ids.ids", prompt)
    optional = {
        "max_tokens": max_tokens,
        "sampling.temperature": temperature,
        "sampling.top_k": top_k,
        "sampling.top_p": top_p,
        "sampling.seed": seed,
    }
    for path, value in optional.items():
        if value is not None:
            _set(request, path, value)
    _set(request, "stop_token_ids", stop_token_ids)
    return request


def _set(message: Message, path: str, value: object) -> None:
    """Sets the field of that path.

    Raises:
        InvalidRequestError: The value does not fit the field.
    """
    *parents, name = path.split(".")
    for parent in parents:
        message = getattr(message, parent)
    field = message.DESCRIPTOR.fields_by_name[name]
    try:
        if field.is_repeated:
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)
    except (TypeError, ValueError) as error:
        expected = _EXPECTED.get(field.type, f"a value for {name}")
        many = "a list, each item " if field.is_repeated else ""
        problem = f"must be {many}{expected}, got {reprlib.repr(value)}"
        raise invalid(path, problem) from error
