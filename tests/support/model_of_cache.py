"""A storage of KV rows in which wrong moves are seen: for each row and position it holds the text up to there."""

from collections.abc import Sequence
from typing import Any

from gpu_service.engine.batches.batch import Batch
from gpu_service.engine.generation import Answer, Generation
from gpu_service.engine.kv_budget import KvBudget
from gpu_service.model_runner.rope_angles import ALL_ALIKE, Angles, RopeAngles
from gpu_service.sampling.parameters import BeamParameters
from tests.support.requests import request_of

Cell = tuple[Angles, tuple[int, ...]] | str | None
"""What a position's keys and values depend on, its angles and the tokens up to it; None for zeros."""

NAN = "nan"


class ModelOfCache:
    """A RowStorage of texts. It counts the positions that it copies."""

    is_divisible = True

    def __init__(self, budget: KvBudget, rope_angles: RopeAngles = ALL_ALIKE) -> None:
        self.budget = budget
        self.rope_angles = rope_angles
        self.cells: list[list[Cell]] = []
        self.num_copied = 0
        self.num_reshaped = 0

    def copy(self, source: int, target: int, *, start: int, stop: int) -> None:
        self.cells[target][start:stop] = self.cells[source][start:stop]
        self.num_copied += stop - start

    def swap(self, one: int, other: int, stop: int) -> None:
        held = self.cells[one][:stop]
        self.cells[one][:stop] = self.cells[other][:stop]
        self.cells[other][:stop] = held
        self.num_copied += 2 * stop

    def clear(self, row: int, stop: int) -> None:
        self.cells[row][:stop] = [None] * stop

    def reshape(self, num_rows: int, length: int, kept: Sequence[tuple[int, int, int]]) -> None:
        assert num_rows * length <= self.budget.num_tokens
        held = [(target, self.cells[source][:stop]) for source, target, stop in kept]
        # every other cell contains leftovers, as reshaped memory does
        self.cells = [[((), (-1,))] * length for _ in range(num_rows)]
        for target, cells in held:
            assert len(cells) <= length
            self.cells[target][: len(cells)] = cells
        self.num_reshaped += 1

    def compute(self, batch: Batch, non_finite: Answer | None = None) -> None:
        """Stores what a forward over the batch would, after a check of what its attention would read.

        Args:
            batch: The batch.
            non_finite: The answer whose generations get non-finite keys and values.
        """
        assert len({span.row for span in batch.spans}) == len(batch.parts)
        for generation, span in zip(batch.generations, batch.spans, strict=True):
            assert generation.row == span.row
            self.check(generation)
            angles = self.rope_angles.of(span.length)
            if self.rope_angles.recomputes:
                assert generation.angles == angles
            assert span.start == generation.num_computed
            text = text_of(generation)
            for position in range(span.start, span.stop):
                assert span.token_ids[position - span.start] == text[position]
                cell: Cell = NAN if generation.answer is non_finite else (angles, text[: position + 1])
                self.cells[generation.row][position] = cell

    def check(self, generation: Generation) -> None:
        """Asserts that a generation's row holds its own text."""
        text = text_of(generation)
        held = self.cells[generation.row][: generation.num_computed]
        assert held == [
            (self._angles_at(position, generation), text[: position + 1]) for position in range(generation.num_computed)
        ]

    def _angles_at(self, position: int, generation: Generation) -> Angles:
        if self.rope_angles.recomputes:
            return generation.angles
        return self.rope_angles.of(max(len(generation.request.prompt), position + 1))


def text_of(generation: Generation) -> tuple[int, ...]:
    """Prompt and output."""
    return (*generation.request.prompt, *generation.output)


def answer_of(prompt: Sequence[int], max_tokens: int = 8, rows: int = 1, beams: int = 0, **more: Any) -> Answer:
    """The answer to a request whose events are dropped."""
    beam = BeamParameters(beams) if beams else None
    return Answer(request_of(prompt, max_tokens, n=rows, beam=beam, **more))


def budget_of(max_rows: int, max_length: int, num_tokens: int | None = None) -> KvBudget:
    """A budget of so many rows of that length, or of fewer tokens."""
    return KvBudget(
        num_tokens=num_tokens or max_rows * max_length, token_bytes=1, max_rows=max_rows, max_length=max_length
    )
