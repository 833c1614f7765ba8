"""What a cache would hold, so that what is moved wrongly is seen: for each row and position the text up to there."""

from collections.abc import Sequence
from typing import Any

from gpu_service.engine import generation as words
from gpu_service.engine.generation import Batch
from gpu_service.engine.kv_budget import KvBudget
from gpu_service.engine.request import Request
from gpu_service.sampling.parameters import BeamParameters, SamplingParameters

Cell = tuple[int, ...] | str | None
"""The tokens that a position's keys and values depend on; None for zeros."""

NAN = "nan"


class ModelOfCache:
    """A RowStorage of texts. It counts the positions that it copies."""

    is_divisible = True

    def __init__(self, budget: KvBudget) -> None:
        self.budget = budget
        self.cells: list[list[Cell]] = []
        self.num_copied = 0
        self.num_reshaped = 0

    def copy(self, source: int, target: int, start: int, stop: int) -> None:
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
        # what was there before is spread over all rows
        self.cells = [[(-1,)] * length for _ in range(num_rows)]
        for target, cells in held:
            assert len(cells) <= length
            self.cells[target][: len(cells)] = cells
        self.num_reshaped += 1

    def compute(self, batch: Batch, poison: Request | None = None) -> None:
        """Stores what a forward over the batch would, after a look at what its attention would read."""
        assert [sequence.row for sequence in batch.sequences] == [
            batch.first_row + row for row in range(len(batch.sequences))
        ]
        for sequence, token_ids, start in zip(batch.sequences, batch.token_ids, batch.start, strict=True):
            self.check(sequence)
            assert start == sequence.num_computed
            text = text_of(sequence)
            for position in range(start, start + len(token_ids)):
                assert token_ids[position - start] == text[position]
                self._set(sequence.row, position, NAN if sequence.request is poison else text[: position + 1])

    def check(self, sequence: words.Sequence) -> None:
        """A sequence's row holds its own text."""
        text = text_of(sequence)
        held = self.cells[sequence.row][: sequence.num_computed]
        assert held == [text[: position + 1] for position in range(sequence.num_computed)]

    def _set(self, row: int, position: int, cell: Cell) -> None:
        self.cells[row][position] = cell


def text_of(sequence: words.Sequence) -> tuple[int, ...]:
    """Prompt and output."""
    return (*sequence.request.prompt, *sequence.output)


def request_of(prompt: Sequence[int], max_tokens: int = 8, rows: int = 1, beams: int = 0, **more: Any) -> Request:
    """A request that nobody listens to, with its sequences."""
    beam = BeamParameters(beams) if beams else None
    request = Request(list(prompt), SamplingParameters(), max_tokens, lambda event: None, n=rows, beam=beam, **more)
    request.sequences = [words.Sequence(request, index) for index in range(request.num_rows)]
    return request


def budget_of(max_rows: int, max_length: int, num_tokens: int | None = None) -> KvBudget:
    """So many rows of that length, or fewer where less memory is said."""
    return KvBudget(num_tokens or max_rows * max_length, 1, max_rows, max_length)
