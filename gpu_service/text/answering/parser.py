"""Parses answers to chats while they come: content, reasoning, and calls of functions, with transformers' parser."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from transformers.utils.chat_parsing import ResponseParser

from gpu_service.text.answering.json_strings import JsonStrings

REASONING_FIELDS = frozenset({"reasoning_content", "reasoning", "thinking"})
TOOL_FIELD, CONTENT_FIELD = "tool_calls", "content"
_JSON_BEGIN = re.compile(r"[\[{]")


@dataclass(frozen=True, slots=True)
class FoundCall:
    """A call of a function."""

    name: str
    arguments: str
    """The text of a JSON object."""


@dataclass(slots=True)
class Delta:
    """What a piece of text adds to an answer."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[FoundCall] = field(default_factory=list)


class AnswerParser:
    """Parses one answer. Spaces at the beginning and the end of content and reasoning are left out.

    What the parser cannot take, such as a call that is not JSON, becomes content as it is.
    """

    def __init__(
        self, template: Mapping[str, Any], prompt: str, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        """Begins an answer.

        Args:
            template: A response template of transformers.
            prompt: The prompt, special tokens included, which may hold the beginning of the answer.
            tools: The tools of the chat, by which the parser chooses types of arguments.
        """
        self._parser: ResponseParser | None = ResponseParser(
            dict(template), prefix=prompt, tools=None if tools is None else [dict(tool) for tool in tools]
        )
        self._held = {"content": "", "reasoning": ""}
        self._has_begun = {"content": False, "reasoning": False}
        self._raw = ""  # of a region that is not told before it ends
        self._is_json = template.get("fields", {}).get(TOOL_FIELD, {}).get("content") == "json"
        self._json: JsonStrings | None = None  # of the call that is being written
        initial = self._parser.initial_events
        opened = [event["field"] for event in initial if event["type"] == "region_open"]
        closed = [event["field"] for event in initial if event["type"] == "region_close"]
        self.begins_in_reasoning = len(opened) > len(closed) and opened[-1] in REASONING_FIELDS
        """Whether the prompt ends within the answer's reasoning."""
        self.has_reasoned = not REASONING_FIELDS.isdisjoint(closed)
        """Whether the prompt has the answer's reasoning, if only an empty one."""

    def add(self, text: str) -> Delta:
        """The next piece of text, special tokens included."""
        delta = Delta()
        if self._parser is None:
            self._append(delta, "content", text)
        else:
            self._feed(delta, text)
        return delta

    def finish(self) -> Delta:
        """The rest."""
        delta = Delta()
        if self._parser is not None:
            try:
                _, events = self._parser.finalize()
            except Exception:
                self._give_up(delta, "")
            else:
                self._take(delta, events)
        return delta

    def _feed(self, delta: Delta, text: str) -> None:
        while text and self._parser is not None:
            piece, shown = self._next_piece(text)
            text = text[len(piece) :]
            try:
                events = self._parser.feed(shown)
            except Exception:  # the parsers of contents raise many kinds
                self._give_up(delta, piece + text)
                return
            if self._json is not None:
                self._raw += piece
            self._take(delta, events)

    def _next_piece(self, text: str) -> tuple[str, str]:
        """What to feed of a text now, as it is and as the parser is shown it.

        The strings of a call's JSON are escaped, so that none looks like the end of the call. To know where the JSON
        begins, text is fed by single characters where it may begin.
        """
        assert self._parser is not None
        if not self._is_json:
            return text, text
        if self._json is not None and not self._json.is_done:
            return self._json.take(text)
        is_pending = self._parser._pos < len(self._parser._buffer)  # it may be at the beginning of a call
        begin = _JSON_BEGIN.search(text)
        if not is_pending and (begin is None or begin.start() > 0):
            piece = text if begin is None else text[: begin.start()]
            return piece, piece
        return text[0], text[0]

    def _give_up(self, delta: Delta, text: str) -> None:
        self._parser = None
        self._append(delta, "content", self._raw + text)

    def _take(self, delta: Delta, events: Sequence[Mapping[str, Any]]) -> None:
        for event in events:
            name, kind = event["field"], event["type"]
            if name == TOOL_FIELD:
                if kind == "region_open" and self._is_json:
                    self._json, self._raw = JsonStrings(), ""
                elif kind == "region_chunk" and self._json is None:
                    self._raw += event["text"]
                elif kind == "region_chunk" and self._json is not None and not self._raw:
                    self._raw = self._json.take(event["text"])[0]
                elif kind == "region_close":
                    self._raw, self._json = "", None
                    values = event["value"] if isinstance(event["value"], list) else [event["value"]]
                    for value in values:
                        self._take_call(delta, value)
            elif kind == "region_chunk" and name in REASONING_FIELDS:
                self._append(delta, "reasoning", event["text"])
            elif kind == "region_chunk" and name == CONTENT_FIELD:
                self._append(delta, "content", event["text"])

    def _take_call(self, delta: Delta, value: Any) -> None:
        function = value.get("function", value) if isinstance(value, Mapping) else None
        if isinstance(function, Mapping) and isinstance(inner := function.get("name"), Mapping):
            function = inner
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            self._append(delta, "content", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
            return
        arguments = function.get("arguments", function.get("parameters", {}))
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        delta.tool_calls.append(FoundCall(function["name"], text))

    def _append(self, delta: Delta, part: str, text: str) -> None:
        """Appends text, without spaces at the beginning, and holds spaces back until other text follows."""
        text = self._held[part] + text
        if not self._has_begun[part]:
            text = text.lstrip()
        kept = text.rstrip()
        self._held[part] = text[len(kept) :]
        if kept:
            self._has_begun[part] = True
            setattr(delta, part, getattr(delta, part) + kept)


def response_template_of(tokenizer: Any, model_type: str, sources: Sequence[str]) -> Mapping[str, Any] | None:
    """The response template of a checkpoint: its tokenizer's, or else transformers' own for the family; or None.

    Args:
        tokenizer: transformers' tokenizer.
        model_type: The model's.
        sources: The chat templates. The family's response template counts if one of them begins answers as it expects.
    """
    template = getattr(tokenizer, "response_template", None)
    if template is None:
        template = _of_family(model_type, sources)
    try:
        AnswerParser(template, "")
    except Exception:  # there is none, or it is malformed
        return None
    found: Mapping[str, Any] = template
    return found


def _of_family(model_type: str, sources: Sequence[str]) -> Any:
    try:
        families = import_module("transformers.cli.serving.utils")._RESPONSE_TEMPLATE_FALLBACKS
    except (ImportError, AttributeError):
        return None
    for types, template in families.items():
        anchors = template.get("start_anchor", "")
        anchors = [anchors] if isinstance(anchors, str) else anchors
        if model_type in types and any(anchor.strip() in source for anchor in anchors for source in sources):
            return template
    return None
