"""A scheduler that runs on a model of its cache, and short names for what is asked of it."""

import itertools

from gpu_service.engine.batches.batch import Batch
from gpu_service.engine.generation import Answer
from gpu_service.engine.prefill_chunks import PrefillChunks
from gpu_service.engine.scheduler import Scheduler
from gpu_service.model_runner.forward_input import Logits
from gpu_service.model_runner.rope_angles import ALL_ALIKE, RopeAngles
from tests.support.model_of_cache import ModelOfCache, budget_of

_tokens = itertools.count(1000)


class SchedulerRun:
    """A scheduler and a model of the cache that it moves. No generated token occurs twice."""

    def __init__(
        self,
        max_rows: int = 4,
        max_length: int = 64,
        num_tokens: int | None = None,
        max_waiting: int = 8,
        chunk: int = 4,
        alone_chunk: int | None = None,
        rope_angles: RopeAngles = ALL_ALIKE,
        packs_spans: bool = False,
    ) -> None:
        budget = budget_of(max_rows, max_length, num_tokens)
        self.cache = ModelOfCache(budget, rope_angles)
        self.max_chunk = max(chunk, alone_chunk or chunk)
        self.scheduler = Scheduler(
            self.cache,
            budget,
            max_waiting=max_waiting,
            chunks=PrefillChunks(with_others=chunk, alone=alone_chunk or chunk, logprobs=3),
            rope_angles=rope_angles,
            packs_spans=packs_spans,
        )

    def add(self, *answers: Answer) -> None:
        for answer in answers:
            self.scheduler.add(answer)

    def step(self, non_finite: Answer | None = None) -> Batch:
        """Computes the next batch. Generations that reach their length end."""
        batch = self.scheduler.next_batch()
        assert batch is not None
        num_tokens = sum(len(span.token_ids) for span in batch.spans)
        assert num_tokens <= max(self.max_chunk, self.scheduler.used_rows), "the budget of a step"
        self.cache.compute(batch, non_finite)
        self.scheduler.commit(batch)
        for part in batch.parts:
            if part.span.logits is not Logits.NONE and (part.ends_prompt or not part.is_prompt):
                for generation in part.generation.answer.generations if part.is_prompt else [part.generation]:
                    generation.output.append(next(_tokens))
                    if len(generation.output) >= generation.request.ending.max_tokens:
                        self.scheduler.finish(generation)
        return batch

    def order(self, num_steps: int) -> list[list[Answer]]:
        """The answers of each of the next batches."""
        return [self.step().answers for _ in range(num_steps)]


def prompt_of(num_tokens: int, first: int = 0) -> list[int]:
    return list(range(first, first + num_tokens))


def num_tokens_of(batch: Batch) -> int:
    """Of its first part."""
    return len(batch.spans[0].token_ids)


def lengths_of(batch: Batch) -> dict[Answer, int]:
    """Tokens of each answer's first part."""
    return {part.generation.answer: len(part.span.token_ids) for part in batch.parts[::-1]}
