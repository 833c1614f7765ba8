"""The prompts under way, and which pieces of them come next. Imports no torch."""

from collections.abc import Iterator, Sequence

from gpu_service.engine.batches.batch import Part, prompt_part
from gpu_service.engine.generation import Answer, Generation
from gpu_service.engine.kv_rows import MIN_SHARED_TOKENS, KvRows, num_shared
from gpu_service.engine.prefill_chunks import PrefillChunks


class Prompts:
    """The admitted requests whose prompts are not computed yet, by admission."""

    def __init__(self, rows: KvRows, chunks: PrefillChunks) -> None:
        """Holds none.

        Args:
            rows: Gives prompts their rows.
            chunks: The most tokens whose logits a step computes.
        """
        self._rows = rows
        self._max_logits = chunks.logprobs
        self._answers: list[Answer] = []
        self._served_oldest = False

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._answers)

    def __contains__(self, answer: Answer) -> bool:
        """Whether a request's prompt is among them."""
        return answer in self._answers

    def add(self, answer: Answer) -> None:
        """Adds the prompt of a request that was admitted."""
        self._answers.append(answer)

    def remove(self, answer: Answer) -> None:
        """Forgets a prompt that is computed or given up."""
        self._answers.remove(answer)

    def next_parts(self, num_tokens: int, *, is_one: bool) -> list[Part]:
        """The next pieces of prompts, which get rows with them.

        A prompt waits for the next batch if this one computes a beginning of it, so that the beginning is computed
        once.

        Args:
            num_tokens: The most tokens of all pieces; above 0.
            is_one: Whether there is to be one piece only.
        """
        parts: list[Part] = []
        num_logits = self._max_logits
        for answer in self._in_turn():
            generation = answer.generations[0]
            wants_all = answer.request.prompt_logprobs is not None and not generation.output
            most = min(num_tokens, num_logits) if wants_all else num_tokens
            if most == 0 or (generation.row < 0 and not wants_all and self._waits_for(generation, parts)):
                continue
            self._begin(generation, may_share=not wants_all)
            part = prompt_part(generation, most, wants_all=wants_all)
            parts.append(part)
            num_tokens -= len(part.span.token_ids)
            num_logits -= part.span.num_logits if wants_all else 0
            if is_one or num_tokens == 0:
                break
        return parts

    def _begin(self, generation: Generation, *, may_share: bool) -> None:
        if generation.row < 0:
            self._rows.begin(generation, may_share=may_share)
            if not generation.output:
                generation.answer.cached_prompt_tokens = generation.num_computed

    def _in_turn(self) -> Iterator[Answer]:
        """First the oldest prompt or the one with the least left, in turn, then the others, the oldest first.

        So a short prompt need not wait for the end of a long one, and a long one advances all the same.
        """
        if not self._answers:
            return
        first = min(self._answers, key=_num_left) if self._served_oldest else self._answers[0]
        self._served_oldest = first is self._answers[0]
        yield first
        yield from (answer for answer in self._answers if answer is not first)

    def _waits_for(self, generation: Generation, parts: Sequence[Part]) -> bool:
        """Whether parts of a batch compute a beginning of a prompt that the cache does not hold yet."""
        wanted, angles = generation.preceding_decode[:-1], self._rows.angles_of(generation)
        coming = max(
            (
                num_shared(wanted, part.generation.preceding_decode[: part.span.stop])
                for part in parts
                if part.generation.angles == angles
            ),
            default=0,
        )
        return coming >= MIN_SHARED_TOKENS and coming >= self._rows.num_held(generation) + MIN_SHARED_TOKENS


def _num_left(answer: Answer) -> int:
    """Tokens to compute before a request decodes."""
    return answer.generations[0].num_to_compute - answer.generations[0].num_computed
