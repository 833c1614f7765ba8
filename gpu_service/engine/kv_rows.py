"""Which sequence holds which row of the cache. Knows tokens and rows, no tensors; torch is not imported here.

Rows 0 to D-1 are the D sequences that decode, so that a step's attention reads a view of adjacent rows; prompts are
computed in rows beyond. A row that is free keeps what it held until something else needs it, so that a prompt that
begins alike does not compute it again.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from gpu_service.engine import generation as words
from gpu_service.engine.kv_budget import KvBudget

MIN_SHARED_TOKENS = 16
"""Shorter beginnings, such as the one token that begins every text, are not worth a copy."""


class RowStorage(Protocol):
    """What holds keys and values by row and position."""

    @property
    def is_divisible(self) -> bool:
        """Whether the beginning of what a row holds can be used without the rest."""
        ...

    def copy(self, source: int, target: int, start: int, stop: int) -> None:
        """Copies positions start to stop - 1 of one row over another's."""
        ...

    def swap(self, one: int, other: int, stop: int) -> None:
        """Exchanges the first `stop` positions of two rows."""
        ...

    def clear(self, row: int, stop: int) -> None:
        """Makes the first `stop` positions of a row zeros."""
        ...

    def reshape(self, num_rows: int, length: int, kept: Sequence[tuple[int, int, int]]) -> None:
        """Becomes another number of rows and positions, and keeps what rows hold.

        Args:
            num_rows: How many rows.
            length: Positions in each.
            kept: (old row, new row, positions).
        """
        ...


class RowTable:
    """Gives rows to sequences and moves what they hold, as little as possible."""

    def __init__(self, storage: RowStorage, budget: KvBudget) -> None:
        self._storage = storage
        self._budget = budget
        self._holders: list[words.Sequence | None] = []
        self._left: list[list[int]] = []  # by row: tokens whose keys and values it holds and nobody uses
        self._left_at: list[int] = []  # by row: when that was, counted in releases; 0 where nothing is left
        self._num_releases = 0
        self._end = 0  # rows before it decode, but for holes that sequences have left
        self._length = 0
        self.reserve(1, 1)

    @property
    def num_decoding(self) -> int:
        """Sequences that decode."""
        return sum(holder is not None for holder in self._holders[: self._end])

    def decoding(self) -> list[words.Sequence]:
        """The sequences that decode, by row from row 0 on."""
        self._close_holes()
        return [holder for holder in self._holders[: self._end] if holder is not None]

    def reserve(self, num_rows: int, length: int) -> None:
        """Makes sure that there are so many rows, each with room for so many tokens; the budget allows them."""
        if num_rows <= len(self._holders) and length <= self._length:
            return
        shape = self._budget.shape(num_rows, length)
        assert shape is not None, f"{num_rows} rows of {length} tokens do not fit"
        self._close_holes()
        holders = [holder for holder in self._holders if holder is not None]  # those that decode stay first
        self._storage.reshape(*shape, [(holder.row, row, holder.num_computed) for row, holder in enumerate(holders)])
        self._holders = [*holders, *[None] * (shape[0] - len(holders))]
        self._left = [[] for _ in self._holders]
        self._left_at = [0] * len(self._holders)
        for row, holder in enumerate(holders):
            holder.row = row
        self._length = shape[1]

    def begin(self, sequence: words.Sequence, may_share: bool) -> None:
        """Gives a prompt a row. What the cache holds of its beginning counts as computed."""
        self._close_holes()
        prompt = sequence.request.prompt
        shared, source = self._longest_shared(prompt) if may_share and self._storage.is_divisible else (0, -1)
        row = self._free_row(besides=source)
        if (
            shared
            and self._holders[source] is None
            and (row is None or len(self._left[source]) - shared < MIN_SHARED_TOKENS)
        ):
            row = source  # little is lost by going on where it is
        assert row is not None, "an admitted request has rows"
        if shared and row != source:
            self._storage.copy(source, row, 0, shared)
        self._put(sequence, row)
        sequence.num_computed = shared

    def join(self, sequences: Sequence[words.Sequence]) -> None:
        """Lets a request's sequences decode. The first one's prompt is computed; the others get a copy."""
        first = sequences[0]
        self._close_holes()
        self._move_to(first, self._end)
        for row, sequence in enumerate(sequences[1:], first.row + 1):
            if (occupant := self._holders[row]) is not None:  # another prompt
                free = self._free_row(after=first.row + len(sequences))
                assert free is not None, "an admitted request has rows"
                self._move_to(occupant, free)
            self._storage.copy(first.row, row, 0, first.num_computed)
            self._put(sequence, row)
            sequence.num_computed = first.num_computed
        self._end += len(sequences)

    def fork(self, source: words.Sequence, target: words.Sequence, start: int) -> None:
        """Makes a row hold what another does, from the position on where they differ."""
        if start < source.num_computed:
            self._storage.copy(source.row, target.row, start, source.num_computed)

    def release(self, sequence: words.Sequence, clear_stop: int = 0) -> None:
        """Takes a sequence's row away, if it has one.

        Args:
            sequence: Whose.
            clear_stop: Positions that are made zeros, where they may hold what is not a number: hidden by a mask, it
                would still spoil the row's next user.
        """
        if sequence.row < 0:
            return
        row, sequence.row = sequence.row, -1
        self._holders[row] = None
        if clear_stop or not self._storage.is_divisible:
            self._storage.clear(row, min(clear_stop, self._length))
        elif sequence.num_computed >= MIN_SHARED_TOKENS:
            self._num_releases += 1
            self._left[row], self._left_at[row] = list(_computed(sequence)), self._num_releases

    def _put(self, sequence: words.Sequence, row: int) -> None:
        self._holders[row] = sequence
        self._left[row], self._left_at[row] = [], 0
        sequence.row = row

    def _move_to(self, sequence: words.Sequence, row: int) -> None:
        """Moves a sequence. Who is there, or what was left there, takes the place that it leaves."""
        if sequence.row == row:
            return
        origin, occupant = sequence.row, self._holders[row]
        left, left_at = self._left[row], self._left_at[row]
        self._holders[origin] = None
        if occupant is None and len(left) < MIN_SHARED_TOKENS and self._storage.is_divisible:
            self._storage.copy(origin, row, 0, sequence.num_computed)
        else:
            num_held = len(left) if occupant is None else occupant.num_computed
            self._storage.swap(origin, row, max(sequence.num_computed, num_held))
            self._left[origin], self._left_at[origin] = left, left_at
            if occupant is not None:
                self._put(occupant, origin)
        self._put(sequence, row)

    def _close_holes(self) -> None:
        """Moves the last of the sequences that decode to where others have left."""
        for hole in range(self._end):
            while self._end and self._holders[self._end - 1] is None:
                self._end -= 1
            if hole >= self._end:
                return
            last = self._holders[self._end - 1]
            if self._holders[hole] is None and last is not None:
                self._move_to(last, hole)

    def _free_row(self, after: int = 0, besides: int = -1) -> int | None:
        """Of the rows beyond those that decode, the first free one in which nothing is left, or what is oldest."""
        rows = range(max(self._end, after), len(self._holders))
        free = [row for row in rows if self._holders[row] is None and row != besides]
        return min(free, key=lambda row: self._left_at[row], default=None)

    def _longest_shared(self, prompt: Sequence[int]) -> tuple[int, int]:
        """How much of a prompt some row holds from its beginning on, and which. The last token is always computed."""
        best = 0, -1
        wanted = prompt[:-1]
        for row, holder in enumerate(self._holders):
            held = self._left[row] if holder is None else _computed(holder)
            best = max(best, (_num_shared(wanted, held), row))
        return best if best[0] >= MIN_SHARED_TOKENS else (0, -1)


def _computed(sequence: words.Sequence) -> Iterator[int]:
    """The tokens whose keys and values a sequence's row holds."""
    tokens = itertools.chain(sequence.request.prompt, sequence.output)
    return itertools.islice(tokens, sequence.num_computed)


def _num_shared(wanted: Sequence[int], held: Iterable[int]) -> int:
    pairs = zip(wanted, held, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
