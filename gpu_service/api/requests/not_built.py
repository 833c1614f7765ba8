"""Refuses, by name, the fields of the protocol that nothing computes yet."""

from collections.abc import Iterator

from fiddler.v1 import generation_pb2
from gpu_service.errors import RequestError

_OF_CHAT = ("tool_choice", "template_arguments", "continue_final_message")


def refuse_chat(chat: generation_pb2.Chat) -> None:
    """Refuses fields of a chat other than the role and the text of its messages.

    Raises:
        RequestError: One is set.
    """
    _refuse(_of_chat(chat))


def _of_chat(chat: generation_pb2.Chat) -> Iterator[str]:
    if chat.tools:
        yield "chat.tools"
    yield from (f"chat.{name}" for name in _OF_CHAT if chat.HasField(name))  # type: ignore[arg-type]
    for position, message in enumerate(chat.messages):
        for field, _ in message.ListFields():
            if field.name not in ("role", "content"):
                yield f"chat.messages[{position}].{field.name}"


def _refuse(fields: "Iterator[str] | list[str]") -> None:
    for field in fields:
        raise RequestError(field, "is not supported by this version of the server")
