"""What one forward computes of which generations. Imports no torch."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpu_service.engine.generation import Answer, Generation
from gpu_service.model_runner.forward_input import Logits, Span


@dataclass(frozen=True, slots=True)
class Part:
    """What a batch computes of one generation."""

    generation: Generation
    span: Span
    is_prompt: bool = False
    ends_prompt: bool = False
    """Whether it contains the last tokens of a prompt, so that the answer's generations decode from then on."""

    @property
    def is_sampled(self) -> bool:
        """Whether each row of its logits is one that a sampler chooses a token by."""
        generation = self.generation
        if generation.answer.search is not None or generation.is_behind:
            return False
        return not self.is_prompt or (self.ends_prompt and self.span.logits is Logits.LAST)


@dataclass(frozen=True, slots=True)
class Batch:
    """What one forward computes: a part of each of some generations."""

    parts: Sequence[Part]

    @property
    def spans(self) -> list[Span]:
        """The span of each part."""
        return [part.span for part in self.parts]

    @property
    def generations(self) -> list[Generation]:
        """The generation of each part."""
        return [part.generation for part in self.parts]

    @property
    def answers(self) -> list[Answer]:
        """The answers that its generations belong to."""
        return list(dict.fromkeys(part.generation.answer for part in self.parts))

    @property
    def is_prompt(self) -> bool:
        """Whether it computes a piece of a prompt, beside others or alone."""
        return any(part.is_prompt for part in self.parts)

    @property
    def logit_rows(self) -> list[slice]:
        """The rows of the logits that are each part's."""
        ends = itertools.accumulate(part.span.num_logits for part in self.parts)
        return [slice(end - part.span.num_logits, end) for part, end in zip(self.parts, ends, strict=True)]

    def parts_of(self, rows: Sequence[int]) -> list[int]:
        """The parts, by number, that some rows of the logits belong to."""
        own = self.logit_rows
        return [number for number, part in enumerate(own) if any(part.start <= row < part.stop for row in rows)]


OnStep = Callable[[Batch, float, float], None]
"""Called after each forward: its batch, when it began on the clock of time.monotonic(), and its seconds."""


def known_part(generation: Generation, num_tokens: int = 1) -> Part:
    """A generation's next tokens that are known, up to its latest, and the logits of the last one.

    If one token is computed, that is its latest, or one that a constraint has put before that.
    """
    start = generation.num_computed
    stop = min(start + num_tokens, generation.num_to_compute + 1)
    tokens = _known(generation, start, stop)
    return Part(generation, Span(row=generation.row, start=start, token_ids=tokens, length=stop))


def recomputing_part(generation: Generation, num_tokens: int) -> Part:
    """The next chunk of all that precedes a generation's latest token."""
    start = generation.num_computed
    tokens = _known(generation, start, min(start + num_tokens, generation.num_to_compute))
    length = generation.num_to_compute + 1
    span = Span(row=generation.row, start=start, token_ids=tokens, length=length, logits=Logits.NONE)
    return Part(generation, span, is_prompt=True)


def prompt_part(generation: Generation, num_tokens: int, *, wants_all: bool) -> Part:
    """The next chunk of a prompt, or of what a generation had computed before its row was taken away.

    Args:
        generation: Has a row.
        num_tokens: The most tokens of the chunk.
        wants_all: Whether the logits of all tokens are needed.
    """
    prompt, start = generation.preceding_decode, generation.num_computed
    tokens = prompt[start : start + num_tokens]
    is_last = start + len(tokens) == len(prompt)
    logits = Logits.ALL if wants_all else Logits.LAST if is_last and not generation.output else Logits.NONE
    span = Span(row=generation.row, start=start, token_ids=tokens, length=len(prompt), logits=logits)
    return Part(generation, span, is_prompt=True, ends_prompt=is_last)


def _known(generation: Generation, start: int, stop: int) -> Sequence[int]:
    """The tokens of a generation at some positions, which begin with the prompt."""
    num_prompt = generation.num_to_compute + 1 - len(generation.output)
    if start >= num_prompt:
        return generation.output[start - num_prompt : stop - num_prompt]
    return [*generation.request.prompt, *generation.output][start:stop]
