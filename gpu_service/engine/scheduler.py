"""Decides what the engine computes next. Imports no torch.

A request is admitted when everything that it may come to need fits, and waits until then; waiting_queue.py has the
order. A step computes the next token of every generation that decodes and, in what is left of a chunk, pieces of
prompts. Where a model cannot compute these in one forward, a chunk of one prompt and a token of every other generation
take turns. A request that is alone gets larger chunks: each chunk reads or copies nearly all experts again, and no
other request waits for its end.
"""

import time
from collections.abc import Sequence

from gpu_service.engine.batches.batch import Batch, Part, known_part, recomputing_part
from gpu_service.engine.batches.prompts import Prompts
from gpu_service.engine.generation import Answer, Generation
from gpu_service.engine.kv_budget import KvBudget
from gpu_service.engine.kv_rows import KvRows, RowStorage
from gpu_service.engine.prefill_chunks import PrefillChunks
from gpu_service.engine.request import Request
from gpu_service.engine.service_times import ServiceTimes
from gpu_service.engine.waiting_queue import WaitingQueue, order
from gpu_service.errors import NeverFitsError
from gpu_service.model_runner.rope_angles import ALL_ALIKE, RopeAngles


class Scheduler:
    """Requests by priority and arrival: waiting, admitted with an unfinished prompt, decoding."""

    def __init__(
        self,
        storage: RowStorage,
        budget: KvBudget,
        *,
        max_waiting: int,
        chunks: PrefillChunks,
        rope_angles: RopeAngles = ALL_ALIKE,
        packs_spans: bool = False,
    ) -> None:
        """Starts without requests.

        Args:
            storage: Stores keys and values.
            budget: How many keys and values the storage may hold.
            max_waiting: The most requests that wait.
            chunks: The most tokens of a step that computes pieces of prompts.
            rope_angles: Which lengths of sequences have the same angles.
            packs_spans: Whether one forward computes pieces of several sequences; otherwise it computes a piece of one,
                or a token of each.
        """
        self.budget = budget
        self._rows = KvRows(storage, budget, rope_angles)
        self._rope_angles = rope_angles
        # what a storage cannot divide cannot be continued either, so that a prompt must be one chunk
        self._chunks = chunks.for_storage(storage.is_divisible, budget.max_length)
        self._divides_prompts = storage.is_divisible
        self._times = ServiceTimes()
        self.waiting = WaitingQueue(self._times, max_waiting, lambda: self.used_rows)
        self._admitted: dict[Answer, float] = {}  # since when
        # several tokens of a sequence in one batch have the angles of one length
        self._runs_ahead = storage.is_divisible and not rope_angles.depend_on_length
        self._prompts = Prompts(self._rows, self._chunks)
        self._packs_spans = packs_spans
        self._prefilled_last = False

    @property
    def num_waiting(self) -> int:
        """Requests that are not admitted yet."""
        return len(self.waiting)

    @property
    def num_running(self) -> int:
        """Requests that are admitted."""
        return len(self._admitted)

    @property
    def used_rows(self) -> int:
        """KV rows that admitted requests need, including those that they do not use yet. For any thread."""
        admitted = tuple(self._admitted)  # one copy, since the engine's thread may change it meanwhile
        return sum(not generation.is_finished for answer in admitted for generation in answer.generations)

    @property
    def used_kv_bytes(self) -> int:
        """Bytes of keys and values that admitted requests may come to hold. For any thread."""
        return self.used_rows * (self._longest() * self.budget.token_bytes + self.budget.row_bytes)

    def check(self, request: Request) -> None:
        """Checks that a request can be computed when nothing else is.

        Raises:
            NeverFitsError: It exceeds the budget, or what can be computed at once.
        """
        self.budget.check(request)
        is_too_long = len(request.prompt) > self._chunks.logprobs and not self._divides_prompts
        if is_too_long and request.prompt_logprobs is not None:
            raise NeverFitsError(
                "prompt_logprobs",
                f"this model computes a prompt at once, and the logits of at most {self._chunks.logprobs} tokens are "
                f"held at one time; the prompt has {len(request.prompt)}",
            )

    def add(self, answer: Answer) -> None:
        """Admits a request, or lets it wait.

        Raises:
            QueueFullError: Too many requests wait, or it could not be computed by its deadline.
            NeverFitsError: It exceeds the budget.
        """
        self.check(answer.request)
        if self._rope_angles.depend_on_length:  # its output could not be computed again as a prompt is
            answer.grows, answer.reserved_length = False, answer.request.max_length
        self.waiting.add(answer)
        self._admit()
        if answer in self.waiting:
            self.waiting.check(answer)

    def next_batch(self) -> Batch | None:
        """What to compute next; None if there is nothing."""
        self._grow()
        decoding = self._rows.decoding()
        outdated = self._outdated(decoding)
        parts = self._packed(decoding, outdated) if self._packs_spans else self._in_turn(decoding, outdated)
        return Batch(parts) if parts else None

    def _packed(self, decoding: Sequence[Generation], outdated: Sequence[Generation]) -> list[Part]:
        """A token of all generations that decode, and pieces of prompts in the rest of a chunk.

        Generations that would take more than half of a chunk take turns with prompts, so that a step never has more
        tokens than a chunk or than there are generations.
        """
        ready, num_tokens = _without_answers(decoding, outdated), self._current_chunk()
        has_prompts = bool(self._prompts or outdated)
        if has_prompts and len(ready) > num_tokens // 2:
            self._prefilled_last = not self._prefilled_last
            ready, has_prompts = ([], True) if self._prefilled_last else (ready, False)
        left = num_tokens - len(ready)
        parts: list[Part] = []
        for generation in sorted(ready, key=lambda each: each.row):
            num_more = generation.num_to_compute - generation.num_computed if self._runs_ahead else 0
            parts.append(known_part(generation, 1 + max(0, min(num_more, left))))
            left -= len(parts[-1].span.token_ids) - 1
        for generation in outdated if has_prompts else ():
            if left > 0:
                parts.append(recomputing_part(generation, left))
                left -= len(parts[-1].span.token_ids)
        return [*parts, *self._prompts.next_parts(left, is_one=False)] if has_prompts and left > 0 else parts

    def _in_turn(self, decoding: Sequence[Generation], outdated: Sequence[Generation]) -> list[Part]:
        """A piece of one sequence, or else a token of all generations that decode, in adjacent rows."""
        behind = [] if outdated else self._behind(decoding)
        ready = _without_answers(decoding, [*outdated, *behind])
        if (self._prompts or len(ready) < len(decoding)) and not (self._prefilled_last and ready):
            self._prefilled_last = True
            if outdated:
                return [recomputing_part(outdated[0], self._current_chunk())]
            if behind:
                return [known_part(behind[0], self._current_chunk())]
            return self._prompts.next_parts(self._current_chunk(), is_one=True)
        self._prefilled_last = False
        if len(ready) < len(decoding):
            self._rows.decode_first(ready)
        return [known_part(each) for each in sorted(ready, key=lambda each: each.row)]

    def commit(self, batch: Batch) -> None:
        """Records that a batch was computed: the keys and values of its tokens are in the cache."""
        for part in batch.parts:
            part.generation.num_computed = part.span.stop
        for part in batch.parts:
            if part.ends_prompt:
                answer = part.generation.answer
                self._prompts.remove(answer)
                self._rows.join(answer.generations)

    def fork(self, source: Generation, target: Generation, start: int) -> None:
        """Makes one beam's KV row a copy of another's, from a position on."""
        self._rows.fork(source, target, start)

    def finish(self, generation: Generation, *, non_finite: bool = False) -> None:
        """Forgets a generation of an admitted request and frees its KV row.

        Args:
            generation: Which one.
            non_finite: Whether its row may contain non-finite values.
        """
        answer = generation.answer
        generation.is_finished = True
        unfinished_prompt = answer in self._prompts
        is_recomputed = self._rope_angles.recomputes and generation.num_computed < generation.num_to_compute
        is_unchecked = unfinished_prompt or is_recomputed
        # the logits of an unfinished prompt were never checked, so that its row may be non-finite, too
        stop = generation.num_computed + self._chunks.alone if non_finite or is_unchecked else 0
        self._rows.release(generation, clear_stop=stop)
        if answer.is_finished:
            tokens = max(len(each.output) for each in answer.generations)
            self._times.add(time.monotonic() - self._admitted.pop(answer), tokens)
            if unfinished_prompt:
                self._prompts.remove(answer)
        self._admit()

    def remove(self, answer: Answer, *, non_finite: bool = False) -> None:
        """Forgets a request, whether it waits or is admitted; see `finish` for `non_finite`."""
        if answer in self._admitted:
            for generation in answer.generations:
                if not generation.is_finished:
                    self.finish(generation, non_finite=non_finite)
        elif answer in self.waiting:
            self.waiting.remove(answer)
            self._admit()

    def _grow(self) -> None:
        """Reserves more memory for outputs that have filled theirs.

        If there is none left, the last request that can be computed again gives up its row and waits. So the first one
        always goes on, since every request fits when nothing else is stored.
        """
        for generation in self._rows.decoding():
            answer = generation.answer
            while answer in self._admitted and generation.num_to_compute >= answer.reserved_length:
                length = answer.next_reservation(answer.reserved_length)
                longest = max(self._longest(), length)
                if self.budget.shape(self.used_rows, longest) is not None:
                    self._rows.reserve(self.used_rows, longest)
                    answer.reserved_length = length
                else:
                    self._suspend(max((each for each in self._admitted if each.grows), key=order))

    def _suspend(self, answer: Answer) -> None:
        """Takes a request's row away. The request waits, and its tokens are computed again later."""
        (generation,) = answer.generations
        if is_prompt := answer in self._prompts:
            self._prompts.remove(answer)
            answer.prompt_entries.clear()
        # as in `finish`
        self._rows.release(generation, clear_stop=generation.num_computed + self._chunks.alone if is_prompt else 0)
        generation.num_computed = 0
        answer.reserved_length = answer.next_reservation(len(answer.request.prompt) + len(generation.output))
        del self._admitted[answer]
        self.waiting.add(answer)

    def _admit(self) -> None:
        """Admits the requests that come first, as long as they fit."""
        while answer := self.waiting.first():
            rows = self.used_rows + answer.request.num_rows
            length = max(self._longest(), answer.reserved_length)
            if self.budget.shape(rows, length) is None:
                return  # a smaller one that came later must wait as well, or this one would never start
            self.waiting.begin(answer)
            self._rows.reserve(rows, length)
            self._admitted[answer] = time.monotonic()
            self._prompts.add(answer)

    def _longest(self) -> int:
        return max((answer.reserved_length for answer in tuple(self._admitted)), default=0)

    def _outdated(self, decoding: Sequence[Generation]) -> list[Generation]:
        """Those whose earlier tokens must be computed again, because their length has changed their angles."""
        if not self._rope_angles.recomputes:
            return []
        for generation in decoding:
            angles = self._rope_angles.of(generation.num_to_compute + 1)
            if angles != generation.angles:
                generation.angles, generation.num_computed = angles, 0
        return [each for each in decoding if each.num_computed < each.num_to_compute]

    def _behind(self, decoding: Sequence[Generation]) -> list[Generation]:
        """Those for which several tokens are known, so many that one batch of them alone is fewer steps."""
        if not self._runs_ahead:
            return []
        return [each for each in decoding if each.num_to_compute - each.num_computed >= len(decoding)]

    def _current_chunk(self) -> int:
        is_alone = len(self._admitted) == 1 and not self.waiting
        return self._chunks.alone if is_alone else self._chunks.with_others


def _without_answers(generations: Sequence[Generation], others: Sequence[Generation]) -> list[Generation]:
    """The generations whose answers have none among the others."""
    answers = {each.answer for each in others}
    return [each for each in generations if each.answer not in answers]
