"""Turns one request's events into the messages of its call. It does not wait."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from fiddler.v1 import generation_pb2
from fiddler.v1.generation_pb2 import Alternative, Chunk, GenerateRequest, GenerateResponse
from gpu_service.api.chat_answers import ChatAnswer
from gpu_service.api.requests.chats import is_parallel, tools_of
from gpu_service.api.requests.validation import skips_special_tokens
from gpu_service.engine.events import Best, Event, Failed, Finished, Progress, Prompt, Token
from gpu_service.engine.request import Request
from gpu_service.errors import for_caller
from gpu_service.sampling.outputs import FinishReason, TokenLogprobs
from gpu_service.text.detokenizer import TextStream
from gpu_service.text.tokenizer import Tokenizer

_PROMPT_TOKENS_PER_MESSAGE = 256  # few, so that building a message keeps no other call waiting
_FINISH_REASONS = {
    FinishReason.EOS: generation_pb2.FINISH_REASON_EOS,
    FinishReason.LENGTH: generation_pb2.FINISH_REASON_LENGTH,
    FinishReason.STOP: generation_pb2.FINISH_REASON_STOP,
    FinishReason.CANCELLED: generation_pb2.FINISH_REASON_CANCELLED,
    FinishReason.DEADLINE: generation_pb2.FINISH_REASON_DEADLINE,
}


class Responses:
    """One call's messages so far."""

    def __init__(self, request: Request, message: GenerateRequest, tokenizer: Tokenizer) -> None:
        """Expects the request's events.

        Args:
            request: The request.
            message: The same as the caller sent it: what its responses are to contain.
            tokenizer: Decodes.
        """
        self._request = request
        self._tokenizer = tokenizer
        self._wants_progress, self._wants_usage = message.prompt_progress, message.chunk_usage
        self._echo = message.echo
        self._skips_special_tokens = skips_special_tokens(message)
        self._num_cached = 0
        self.num_unfinished = request.n if request.beam is None else request.beam.num_return_sequences
        """Generations whose end has not been sent."""
        self.finish_reasons = Counter[FinishReason]()
        """Of the generations that have ended."""
        self.num_tokens = 0
        """Generated in all of them together; those of beams are added when they end."""
        prompt = request.prompt if message.echo else ()
        self._texts = [
            TextStream(tokenizer, request.stop, prompt, skip_special_tokens=self._skips_special_tokens)
            for _ in range(self.num_unfinished)
        ]
        self._num_completion_tokens = [0] * self.num_unfinished
        self._answers: list[ChatAnswer] = []
        if message.HasField("chat"):
            tools = tools_of(message.chat, tokenizer)
            most = None if is_parallel(message.chat) else 1
            self._answers = [ChatAnswer(request, tokenizer, tools, most) for _ in range(self.num_unfinished)]

    def begin(self) -> Iterator[GenerateResponse]:
        """Yields the messages that need no computation: echoes."""
        if self._request.prompt_logprobs is None:  # they come before the echoes
            yield from self._echoes()

    def of(self, events: Iterable[Event]) -> Iterator[GenerateResponse]:
        """Yields the messages for events that came together. Tokens of one generation share a message.

        Raises:
            CallError: The request failed.
        """
        tokens: dict[int, list[Token]] = {}
        for event in events:
            match event:
                case Token():
                    tokens.setdefault(event.index, []).append(event)
                    self.num_tokens += 1
                case Prompt():
                    yield from self._prompt(event.logprobs)
                    yield from self._echoes()
                case Progress():
                    self._num_cached = event.cached_tokens
                    if self._wants_progress:
                        yield GenerateResponse(progress=self._progress(event))
                case Best():
                    yield GenerateResponse(beam=self._best(event))
                case Finished():
                    yield from self._end(event, tokens.pop(event.index, []))
                case Failed():
                    yield from self._chunks(tokens)
                    raise for_caller(event.error)
        yield from self._chunks(tokens)

    def _chunks(self, tokens: dict[int, list[Token]]) -> Iterator[GenerateResponse]:
        for index, made in tokens.items():
            token_ids = [token.token_id for token in made]
            text = self._texts[index].add(token_ids)
            yield self._chunk(index, made, text, self._answers[index].add(token_ids, text) if self._answers else None)

    def _chunk(
        self, index: int, tokens: Sequence[Token], text: str, delta: generation_pb2.MessageDelta | None
    ) -> GenerateResponse:
        token_ids = [token.token_id for token in tokens]
        logprobs = [self._logprobs(token.logprobs) for token in tokens if token.logprobs is not None]
        chunk = Chunk(index=index, token_ids=token_ids, text=text, logprobs=logprobs, delta=delta)
        self._num_completion_tokens[index] += len(tokens)
        if self._wants_usage:
            chunk.usage.CopyFrom(self._usage(self._num_completion_tokens[index], self._num_cached))
        return GenerateResponse(chunk=chunk)

    def _end(self, event: Finished, tokens: Sequence[Token]) -> Iterator[GenerateResponse]:
        delta = None
        if self._request.beam is None:
            token_ids = [token.token_id for token in tokens]
            text = self._texts[event.index].add(token_ids)
            text += self._texts[event.index].finish(event.stop)
            if self._answers:
                delta = self._answers[event.index].finish(token_ids, text, event.stop)
            if tokens or text or (delta is not None and delta.ByteSize()):
                yield self._chunk(event.index, tokens, text, delta)
        self.num_unfinished -= 1
        self.finish_reasons[event.reason] += 1
        self.num_tokens += len(event.token_ids)
        yield GenerateResponse(complete=self._complete(event))

    def _echoes(self) -> Iterator[GenerateResponse]:
        for index, text in enumerate(self._texts if self._echo else ()):
            yield GenerateResponse(chunk=Chunk(index=index, token_ids=self._request.prompt, text=text.prompt_text))

    def _prompt(self, logprobs: Sequence[TokenLogprobs]) -> Iterator[GenerateResponse]:
        for start in range(0, len(logprobs), _PROMPT_TOKENS_PER_MESSAGE):
            part = [self._logprobs(each) for each in logprobs[start : start + _PROMPT_TOKENS_PER_MESSAGE]]
            yield GenerateResponse(prompt=generation_pb2.PromptLogprobs(tokens=part))

    def _progress(self, event: Progress) -> generation_pb2.PromptProgress:
        return generation_pb2.PromptProgress(
            computed_tokens=event.computed_tokens,
            total_tokens=len(self._request.prompt),
            cached_tokens=event.cached_tokens,
        )

    def _best(self, event: Best) -> generation_pb2.BestBeam:
        text = self._tokenizer.decode(event.token_ids, self._skips_special_tokens)
        return generation_pb2.BestBeam(token_ids=event.token_ids, text=text, score=event.score)

    def _logprobs(self, logprobs: TokenLogprobs) -> generation_pb2.TokenLogprobs:
        top = [
            Alternative(token_id=token_id, logprob=logprob, text=self._tokenizer.token_text(token_id))
            for token_id, logprob in logprobs.top
        ]
        return generation_pb2.TokenLogprobs(
            token_id=logprobs.token_id,
            logprob=logprobs.logprob,
            top=top,
            text=self._tokenizer.token_text(logprobs.token_id),
        )

    def _complete(self, event: Finished) -> generation_pb2.Complete:
        text = self._tokenizer.decode(event.token_ids, self._skips_special_tokens) if event.token_ids else ""
        message = None
        if self._answers and self._request.beam is not None:
            message = self._answers[event.index].finish(event.token_ids, text, None)
        calls = bool(self._answers) and self._answers[event.index].num_calls > 0
        reason = _FINISH_REASONS[event.reason]
        if calls and event.reason in (FinishReason.EOS, FinishReason.STOP):
            reason = generation_pb2.FINISH_REASON_TOOL_CALLS
        return generation_pb2.Complete(
            index=event.index,
            finish_reason=reason,
            usage=self._usage(event.completion_tokens, event.cached_prompt_tokens),
            timings=generation_pb2.Timings(
                queue_seconds=event.queue_seconds,
                prefill_seconds=event.prefill_seconds,
                decode_seconds=event.decode_seconds,
            ),
            score=event.score,
            stop=event.stop,
            stop_token_id=event.stop_token_id,
            token_ids=event.token_ids,
            text=text,
            message=message,
        )

    def _usage(self, completion_tokens: int, cached_prompt_tokens: int) -> generation_pb2.Usage:
        return generation_pb2.Usage(
            prompt_tokens=len(self._request.prompt),
            completion_tokens=completion_tokens,
            cached_prompt_tokens=cached_prompt_tokens,
        )
