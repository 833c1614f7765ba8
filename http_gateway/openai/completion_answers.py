"""From the GPU service's messages to OpenAI's text completions: in chunks, or whole."""

from collections.abc import Iterator, Sequence
from typing import Any

from fiddler.v1 import generation_pb2
from http_gateway.openai.answers import Head, UsageSum, finish_reason, finite, progress_of, stop_reason, token_name
from http_gateway.openai.completion_request import CompletionRequest


class CompletionParts:
    """The texts of one prompt's choices, with their log probabilities.

    The log probabilities of an echoed prompt come before its text, and belong to each of its choices.
    """

    def __init__(self, body: CompletionRequest, *, prompt: int, shows_output: bool, usage: UsageSum) -> None:
        """Prepares.

        Args:
            body: The HTTP request.
            prompt: The index of the prompt.
            shows_output: Whether the generated tokens are part of the answer.
            usage: Takes the numbers of tokens.
        """
        self._body = body
        self._prompt = prompt
        self._shows_output = shows_output
        self._usage = usage
        self._first_choice = prompt * (body.n or 1)
        self._prompt_logprobs: list[generation_pb2.TokenLogprobs] = []
        self._offsets: dict[int, int] = {}
        self._has_echo: set[int] = set()

    def of(self, response: generation_pb2.GenerateResponse) -> Iterator[dict[str, Any]]:
        """The choices that a message adds to.

        Raises:
            ApiError: The generation was ended from outside.
        """
        match response.WhichOneof("event"):
            case "prompt":
                self._prompt_logprobs.extend(response.prompt.tokens)
            case "chunk":
                yield from self._chunk(response.chunk)
            case "complete":
                yield self._complete(response.complete)

    def _chunk(self, chunk: generation_pb2.Chunk) -> Iterator[dict[str, Any]]:
        index = self._first_choice + chunk.index
        if chunk.HasField("usage"):
            self._usage.set(chunk.usage, prompt=self._prompt, choice=index)
        is_echo = bool(self._body.echo) and chunk.index not in self._has_echo
        if is_echo:
            self._has_echo.add(chunk.index)
        elif not self._shows_output:
            return
        tokens = self._prompt_logprobs if is_echo else chunk.logprobs
        logprobs = self._logprobs(index, tokens) if self._body.logprobs is not None else None
        if chunk.text or (logprobs and logprobs["tokens"]):
            yield {"index": index, "text": chunk.text, "logprobs": logprobs, "finish_reason": None}

    def _complete(self, complete: generation_pb2.Complete) -> dict[str, Any]:
        index = self._first_choice + complete.index
        usage = generation_pb2.Usage()
        usage.CopyFrom(complete.usage)
        if not self._shows_output:
            usage.completion_tokens = 0
        self._usage.set(usage, prompt=self._prompt, choice=index)
        reason = finish_reason(complete)
        return {
            "index": index,
            "text": "",
            "logprobs": None,
            "finish_reason": reason if self._shows_output else "length",
            "stop_reason": stop_reason(complete) if self._shows_output else None,
        }

    def _logprobs(self, index: int, tokens: Sequence[generation_pb2.TokenLogprobs]) -> dict[str, Any]:
        as_ids = bool(self._body.return_tokens_as_token_ids)
        offset = self._offsets.get(index, 0)
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token.text)
        self._offsets[index] = offset
        return {
            "tokens": [token_name(token, as_ids=as_ids) for token in tokens],
            "token_logprobs": [finite(token.logprob) if token.HasField("logprob") else None for token in tokens],
            "top_logprobs": [_top(token, as_ids=as_ids) for token in tokens],
            "text_offset": offsets,
        }


class ChunkForm:
    """What the chunks of a stream have besides its texts."""

    def __init__(self, head: Head, body: CompletionRequest, usage: UsageSum) -> None:
        self._head = head
        self._usage = usage
        options = body.stream_options
        self._has_usage = bool(options and options.include_usage)
        self._has_usage_so_far = bool(options and options.continuous_usage_stats)

    def of(self, part: dict[str, Any]) -> dict[str, Any]:
        """The chunk with what CompletionParts made of a message."""
        if self._has_usage_so_far:
            return self._head.of([part], usage=self._usage.content())
        return self._head.of([part], usage=None) if self._has_usage else self._head.of([part])

    def progress(self, progress: generation_pb2.PromptProgress) -> dict[str, Any]:
        """The chunk that tells how much of a prompt is computed."""
        return self._head.of([], prompt_progress=progress_of(progress))

    def end(self) -> Iterator[dict[str, Any]]:
        """The chunks after all texts."""
        if self._has_usage:
            yield self._head.of([], usage=self._usage.content())


class WholeCompletion:
    """All choices of a request, in one piece."""

    def __init__(self, head: Head, usage: UsageSum) -> None:
        self._head = head
        self._usage = usage
        self._choices: dict[int, dict[str, Any]] = {}

    def add(self, part: dict[str, Any]) -> None:
        """Takes what CompletionParts made of a message."""
        choice = self._choices.setdefault(part["index"], {**part, "text": "", "logprobs": None})
        choice["text"] += part["text"]
        if (added := part["logprobs"]) is not None:
            logprobs = choice["logprobs"] or {name: [] for name in added}
            choice["logprobs"] = {name: values + added[name] for name, values in logprobs.items()}
        if part["finish_reason"] is not None:
            choice["finish_reason"], choice["stop_reason"] = part["finish_reason"], part["stop_reason"]

    def content(self) -> dict[str, Any]:
        """OpenAI's object."""
        choices = [self._choices[index] for index in sorted(self._choices)]
        return self._head.of(choices, usage=self._usage.content())


def _top(token: generation_pb2.TokenLogprobs, *, as_ids: bool) -> dict[str, float] | None:
    """The alternatives and the token itself; null for the first token of a prompt. Of equal texts, the likelier."""
    if not token.HasField("logprob"):
        return None
    top: dict[str, float] = {}
    for each in token.top:
        top.setdefault(token_name(each, as_ids=as_ids), finite(each.logprob))
    top.setdefault(token_name(token, as_ids=as_ids), finite(token.logprob))
    return top
