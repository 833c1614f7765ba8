"""Puts the answers to a chat together from their pieces."""

from collections.abc import Iterable
from dataclasses import dataclass

from client._messages import Complete, Event, GenerationChunk, MessageDelta, ToolCallDelta


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a function.

    Attributes:
        id: Identifies the call, for the message that holds its result.
        name: The function's name.
        arguments: The text of a JSON object.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The whole answer to a chat.

    Attributes:
        content: The content.
        reasoning: The reasoning before it; empty if there is none, or the model has no response parser.
        tool_calls: The functions that it calls.
    """

    content: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


class AnswerBuilder:
    """One answer as far as its pieces have arrived."""

    def __init__(self) -> None:
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._tool_calls: dict[int, list[ToolCallDelta]] = {}

    def add(self, delta: MessageDelta) -> None:
        """Appends a piece."""
        self._content.append(delta.content)
        self._reasoning.append(delta.reasoning)
        for call in delta.tool_calls:
            self._tool_calls.setdefault(call.index, []).append(call)

    def answer(self) -> Answer:
        """The answer so far."""
        calls = tuple(_whole(self._tool_calls[index]) for index in sorted(self._tool_calls))
        return Answer("".join(self._content), "".join(self._reasoning), calls)


def answers_of(events: Iterable[Event], num_generations: int) -> list[Answer]:
    """The answers of a chat's generations, by index: from their chunks, or from their ends if they are beams."""
    builders = [AnswerBuilder() for _ in range(num_generations)]
    for event in events:
        delta = event.delta if isinstance(event, GenerationChunk) else None
        if isinstance(event, Complete):
            delta = event.message
        if isinstance(event, GenerationChunk | Complete) and delta is not None and event.index < num_generations:
            builders[event.index].add(delta)
    return [builder.answer() for builder in builders]


def _whole(pieces: list[ToolCallDelta]) -> ToolCall:
    parts = (str.join("", (getattr(piece, name) for piece in pieces)) for name in ("id", "name", "arguments"))
    return ToolCall(*parts)
