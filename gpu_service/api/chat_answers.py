"""Turns the tokens of an answer to a chat into its deltas: content, reasoning, and calls of functions."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from fiddler.v1.generation_pb2 import MessageDelta, ToolCallDelta
from gpu_service.engine.request import Request
from gpu_service.text.answering.parser import AnswerParser, Delta
from gpu_service.text.detokenizer import TextStream
from gpu_service.text.stop_strings import StopStrings
from gpu_service.text.tokenizer import Tokenizer


class ChatAnswer:
    """One generation's answer."""

    def __init__(
        self,
        request: Request,
        tokenizer: Tokenizer,
        tools: Sequence[Mapping[str, Any]] | None,
        most_calls: int | None = None,
    ) -> None:
        """Begins an answer.

        Args:
            request: The request, whose prompt is the rendered chat.
            tokenizer: Decodes; it knows how answers are parsed.
            tools: Those of the chat.
            most_calls: Further calls are left out; None: no bound.
        """
        self._most_calls = most_calls
        self._end_ids = request.ending.end_ids
        self._parser: AnswerParser | None = None
        if template := tokenizer.response_template:
            self._parser = AnswerParser(template, tokenizer.decode(request.prompt, skip_special_tokens=False), tools)
        stop = request.stop
        if stop is not None:  # the parser needs special tokens, and must not see what a stop text cuts off
            stop = StopStrings(
                stop.strings, tokenizer, include=stop.include, min_tokens=stop.min_tokens, skip_special_tokens=False
            )
        self._text = TextStream(tokenizer, stop, skip_special_tokens=False)
        self.num_calls = 0
        """Calls of functions so far."""

    def add(self, token_ids: Sequence[int], text: str) -> MessageDelta:
        """What tokens add to the answer.

        Args:
            token_ids: The tokens.
            text: Their text as the caller is sent it, which is the content if answers cannot be parsed.
        """
        if self._parser is None:
            return MessageDelta(content=text)
        return self._message(self._parser.add(self._text.add(self._visible(token_ids))))

    def finish(self, token_ids: Sequence[int], text: str, stop: str | None) -> MessageDelta:
        """What the last tokens add; see `add`. `stop` is the stop text that ended the answer."""
        if self._parser is None:
            return MessageDelta(content=text)
        rest = self._text.add(self._visible(token_ids)) + self._text.finish(stop)
        message = self._message(self._parser.add(rest))
        message.MergeFrom(self._message(self._parser.finish()))
        return message

    def _visible(self, token_ids: Sequence[int]) -> list[int]:
        """Without the token that ends the answer, which is no part of it."""
        return [token_id for token_id in token_ids if token_id not in self._end_ids]

    def _message(self, delta: Delta) -> MessageDelta:
        message = MessageDelta(content=delta.content, reasoning=delta.reasoning)
        for call in delta.tool_calls:
            if self.num_calls == self._most_calls:
                break
            message.tool_calls.append(
                ToolCallDelta(
                    index=self.num_calls,
                    id=f"call_{secrets.token_hex(12)}",
                    name=call.name,
                    arguments=call.arguments,
                )
            )
            self.num_calls += 1
        return message
