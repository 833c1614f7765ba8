"""What a person is shown of the answer to a chat: its reasoning, its content, and the functions that it calls."""

from client._answers import Answer, AnswerBuilder
from client._messages import Complete, Event, GenerationChunk, MessageDelta

_REASONING, _ANSWER = "[reasoning]\n", "[answer]\n"


class ShownAnswer:
    """One answer as it comes."""

    def __init__(self) -> None:
        self._builder = AnswerBuilder()
        self._part = ""

    def text_of(self, event: Event) -> str:
        """What is printed of an event."""
        delta = _delta_of(event)
        if delta is None:
            return ""
        self._builder.add(delta)
        text = self._begin("reasoning", _REASONING) + delta.reasoning if delta.reasoning else ""
        if delta.content:
            text += self._begin("content", _ANSWER if self._part or text else "") + delta.content
        for call in delta.tool_calls:
            if call.name:
                text += self._begin(f"call {call.index}", f"[call] {call.name} ")
            text += call.arguments
        return text

    def answer(self) -> Answer:
        """The answer so far."""
        return self._builder.answer()

    def _begin(self, part: str, heading: str) -> str:
        """What precedes a part of the answer: nothing within the part."""
        if part == self._part:
            return ""
        is_first = not self._part
        self._part = part
        return heading if is_first else f"\n{heading}"


def _delta_of(event: Event) -> MessageDelta | None:
    """What an event adds to the answer. A server that parses no answers sends text alone."""
    if isinstance(event, GenerationChunk):
        return event.delta if event.delta is not None else MessageDelta(event.text)
    if isinstance(event, Complete):
        return event.message if event.message is not None else MessageDelta(event.text)
    return None
