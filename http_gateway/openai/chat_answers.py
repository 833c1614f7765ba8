"""From the GPU service's messages to OpenAI's answers to a chat: in chunks, or whole."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from fiddler.v1 import generation_pb2
from http_gateway.openai.answers import Head, UsageSum, finish_reason, finite, progress_of, stop_reason, token_name
from http_gateway.openai.chat_request import ChatRequest


class ChatChunks:
    """The chunks of a stream."""

    def __init__(self, head: Head, body: ChatRequest) -> None:
        self._head = head
        self._body = body
        self._usage = UsageSum()
        options = body.stream_options
        self._has_usage = bool(options and options.include_usage)
        self._has_usage_so_far = bool(options and options.continuous_usage_stats)

    def begin(self) -> Iterator[dict[str, Any]]:
        """The chunks that name the speaker, before any token."""
        for index in range(self._body.n or 1):
            yield self._chunk(index, {"role": "assistant", "content": ""})

    def of(self, response: generation_pb2.GenerateResponse) -> Iterator[dict[str, Any]]:
        """The chunks for a message.

        Raises:
            ApiError: The generation was ended from outside.
        """
        match response.WhichOneof("event"):
            case "chunk":
                chunk = response.chunk
                if chunk.HasField("usage"):
                    self._usage.set(chunk.usage, prompt=0, choice=chunk.index)
                delta = _delta(chunk)
                logprobs = _logprobs(chunk, self._body) if self._body.logprobs else None
                if delta or logprobs:
                    yield self._chunk(chunk.index, delta, logprobs)
            case "complete":
                complete = response.complete
                self._usage.set(complete.usage, prompt=0, choice=complete.index)
                end = {"finish_reason": finish_reason(complete), "stop_reason": stop_reason(complete)}
                yield self._chunk(complete.index, {}, end=end)
            case "progress":
                yield self._head.of([], prompt_progress=progress_of(response.progress))

    def end(self) -> Iterator[dict[str, Any]]:
        """The chunks after all generations."""
        if self._has_usage:
            yield self._head.of([], usage=self._usage.content())

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        end: Mapping[str, object] = MappingProxyType({}),
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None, **end}
        if self._has_usage_so_far:
            return self._head.of([choice], usage=self._usage.content())
        return self._head.of([choice], usage=None) if self._has_usage else self._head.of([choice])


class WholeChat:
    """The answer in one piece."""

    def __init__(self, head: Head, body: ChatRequest) -> None:
        self._head = head
        self._body = body
        self._usage = UsageSum()
        self._choices = [_Choice() for _ in range(body.n or 1)]

    def add(self, response: generation_pb2.GenerateResponse) -> None:
        """Takes a message.

        Raises:
            ApiError: The generation was ended from outside.
        """
        match response.WhichOneof("event"):
            case "chunk":
                choice = self._choices[response.chunk.index]
                choice.add(_delta(response.chunk))
                if self._body.logprobs:
                    choice.logprobs += _token_logprobs(response.chunk, self._body)
            case "complete":
                complete = response.complete
                self._usage.set(complete.usage, prompt=0, choice=complete.index)
                self._choices[complete.index].end = {
                    "finish_reason": finish_reason(complete),
                    "stop_reason": stop_reason(complete),
                }

    def content(self) -> dict[str, Any]:
        """OpenAI's object."""
        choices = [
            {
                "index": index,
                "message": choice.message(),
                "logprobs": {"content": choice.logprobs, "refusal": None} if self._body.logprobs else None,
                **choice.end,
            }
            for index, choice in enumerate(self._choices)
        ]
        return self._head.of(choices, usage=self._usage.content())


class _Choice:
    """One generation of a whole answer, as it grows."""

    def __init__(self) -> None:
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, dict[str, Any]] = {}
        self.logprobs: list[dict[str, Any]] = []
        self.end: dict[str, Any] = {}

    def add(self, delta: dict[str, Any]) -> None:
        """Takes a delta of a stream."""
        self._content.append(delta.get("content", ""))
        self._reasoning.append(delta.get("reasoning_content", ""))
        for piece in delta.get("tool_calls", ()):
            call = self._calls.setdefault(piece["index"], {"id": "", "type": "function", "function": {}})
            call["id"] += piece.get("id", "")
            for name, text in piece["function"].items():
                call["function"][name] = call["function"].get(name, "") + text

    def message(self) -> dict[str, Any]:
        """OpenAI's message. Its content is null if there are only calls."""
        content = "".join(self._content)
        message: dict[str, Any] = {"role": "assistant", "content": content or (None if self._calls else "")}
        if reasoning := "".join(self._reasoning):
            message["reasoning_content"] = reasoning
        if self._calls:
            message["tool_calls"] = [self._calls[index] for index in sorted(self._calls)]
        return message


def _delta(chunk: generation_pb2.Chunk) -> dict[str, Any]:
    """What a chunk adds to the message; empty if nothing."""
    if not chunk.HasField("delta"):
        return {"content": chunk.text} if chunk.text else {}
    delta: dict[str, Any] = {}
    if chunk.delta.content:
        delta["content"] = chunk.delta.content
    if chunk.delta.reasoning:
        delta["reasoning_content"] = chunk.delta.reasoning
    calls = list(map(_call, chunk.delta.tool_calls))
    return {**delta, "tool_calls": calls} if calls else delta


def _call(call: generation_pb2.ToolCallDelta) -> dict[str, Any]:
    function = {"name": call.name} if call.name else {}
    piece: dict[str, Any] = {"index": call.index, "function": {**function, "arguments": call.arguments}}
    if call.id:
        piece |= {"id": call.id, "type": "function"}
    return piece


def _logprobs(chunk: generation_pb2.Chunk, body: ChatRequest) -> dict[str, Any] | None:
    tokens = _token_logprobs(chunk, body)
    return {"content": tokens, "refusal": None} if tokens else None


def _token_logprobs(chunk: generation_pb2.Chunk, body: ChatRequest) -> list[dict[str, Any]]:
    as_ids = bool(body.return_tokens_as_token_ids)
    return [
        {
            **_token(token, as_ids=as_ids),
            "top_logprobs": [_token(each, as_ids=as_ids) for each in token.top[: body.top_logprobs or 0]],
        }
        for token in chunk.logprobs
    ]


def _token(token: "generation_pb2.TokenLogprobs | generation_pb2.Alternative", *, as_ids: bool) -> dict[str, Any]:
    is_whole = "\ufffd" not in token.text
    return {
        "token": token_name(token, as_ids=as_ids),
        "logprob": finite(token.logprob),
        "bytes": list(token.text.encode()) if is_whole else None,
    }
