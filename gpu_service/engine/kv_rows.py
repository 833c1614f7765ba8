"""Decides which generation has which KV row, a row of the cache of keys and values. Imports no torch.

Rows 0 to D-1 belong to the D generations that decode, so that a step's attention reads adjacent rows as one view;
prompts are computed in the rows beyond. A free row keeps its contents until the row is needed for something else, so
that a prompt with the same beginning need not compute it again.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from gpu_service.engine.generation import Generation
from gpu_service.engine.kv_budget import KvBudget
from gpu_service.model_runner.rope_angles import ALL_ALIKE, Angles, RopeAngles

MIN_SHARED_TOKENS = 16
"""Shorter beginnings, such as the one token that begins every text, are not worth a copy."""


class RowStorage(Protocol):
    """Stores keys and values by KV row and position."""

    @property
    def is_divisible(self) -> bool:
        """Whether the beginning of a row's contents can be used without the rest."""
        ...

    def copy(self, source: int, target: int, *, start: int, stop: int) -> None:
        """Copies positions start to stop - 1 of one row over another's."""
        ...

    def swap(self, one: int, other: int, stop: int) -> None:
        """Exchanges the first `stop` positions of two rows."""
        ...

    def clear(self, row: int, stop: int) -> None:
        """Sets the first `stop` positions of a row to zero."""
        ...

    def reshape(self, num_rows: int, length: int, kept: Sequence[tuple[int, int, int]]) -> None:
        """Changes the number of rows and positions, and keeps some contents.

        Args:
            num_rows: The number of rows.
            length: Positions in each.
            kept: (old row, new row, positions).
        """
        ...


class KvRows:
    """Gives KV rows to generations, and moves the contents of rows as little as possible."""

    def __init__(self, storage: RowStorage, budget: KvBudget, rope_angles: RopeAngles = ALL_ALIKE) -> None:
        self._storage = storage
        self._budget = budget
        self._rope_angles = rope_angles
        self._holders: list[Generation | None] = []
        self._left: list[list[int]] = []  # by row: the tokens whose keys and values a released row still holds
        self._left_angles: list[Angles] = []  # by row: the angles that those keys have
        self._left_at: list[int] = []  # by row: the number of the release that left them; 0 if nothing is left
        self._num_releases = 0
        self._end = 0  # the rows before it decode, except for holes that released generations left
        self._length = 0
        self.reserve(1, 1)

    def decoding(self) -> list[Generation]:
        """The generations that decode, in order of their rows, which start at row 0 and are adjacent."""
        self._close_holes()
        return [holder for holder in self._holders[: self._end] if holder is not None]

    def decode_first(self, generations: Sequence[Generation]) -> None:
        """Moves some of the generations that decode to the rows before all others."""
        for row, generation in enumerate(sorted(generations, key=lambda each: each.row)):
            self._move_to(generation, row)

    def reserve(self, num_rows: int, length: int) -> None:
        """Makes sure that there are so many rows with room for so many tokens each. The budget allows them."""
        if num_rows <= len(self._holders) and length <= self._length:
            return
        shape = self._budget.shape(num_rows, length)
        assert shape is not None, f"{num_rows} rows of {length} tokens do not fit"
        self._close_holes()
        holders = [holder for holder in self._holders if holder is not None]  # those that decode stay first
        self._storage.reshape(*shape, [(holder.row, row, holder.num_computed) for row, holder in enumerate(holders)])
        self._holders = [*holders, *[None] * (shape[0] - len(holders))]
        self._left = [[] for _ in self._holders]
        self._left_angles = [() for _ in self._holders]
        self._left_at = [0] * len(self._holders)
        for row, holder in enumerate(holders):
            holder.row = row
        self._length = shape[1]

    def begin(self, generation: Generation, *, may_share: bool) -> None:
        """Gives a prompt a row. The beginning of it that the cache holds already counts as computed."""
        self._close_holes()
        prompt = generation.preceding_decode
        generation.angles = self.angles_of(generation)
        may_share = may_share and self._storage.is_divisible
        shared, source = self._longest_shared(prompt, generation.angles) if may_share else (0, -1)
        row = self._free_row(other_than=source)
        if (
            shared
            and self._holders[source] is None
            and (row is None or len(self._left[source]) - shared < MIN_SHARED_TOKENS)
        ):
            row = source  # continuing in place loses little of what is left there
        assert row is not None, "an admitted request has rows"
        if shared and row != source:
            self._storage.copy(source, row, start=0, stop=shared)
        self._put(generation, row)
        generation.num_computed = shared

    def angles_of(self, generation: Generation) -> Angles:
        """The angles that a prompt will have."""
        return self._rope_angles.of(len(generation.preceding_decode))

    def num_held(self, generation: Generation) -> int:
        """Tokens of a prompt's beginning that a row holds, and that `begin` would share."""
        return self._longest_shared(generation.preceding_decode, self.angles_of(generation))[0]

    def join(self, generations: Sequence[Generation]) -> None:
        """Lets a request's generations decode. The first one's prompt is computed; the others get copies of it."""
        first = generations[0]
        self._close_holes()
        self._move_to(first, self._end)
        for row, generation in enumerate(generations[1:], first.row + 1):
            if (occupant := self._holders[row]) is not None:  # another prompt
                free = self._free_row(after=first.row + len(generations))
                assert free is not None, "an admitted request has rows"
                self._move_to(occupant, free)
            self._storage.copy(first.row, row, start=0, stop=first.num_computed)
            self._put(generation, row)
            generation.num_computed, generation.angles = first.num_computed, first.angles
        self._end += len(generations)

    def fork(self, source: Generation, target: Generation, start: int) -> None:
        """Makes a row a copy of another, from the position on at which they differ."""
        if start < source.num_computed:
            self._storage.copy(source.row, target.row, start=start, stop=source.num_computed)

    def release(self, generation: Generation, *, clear_stop: int = 0) -> None:
        """Takes a generation's row away, if it has one.

        Args:
            generation: Which one.
            clear_stop: Positions to set to zero because they may be non-finite. A mask would hide them from the row's
                next user, but NaN times 0 is NaN.
        """
        if generation.row < 0:
            return
        row, generation.row = generation.row, -1
        self._holders[row] = None
        if clear_stop or not self._storage.is_divisible:
            self._storage.clear(row, min(clear_stop, self._length))
        elif generation.num_computed >= MIN_SHARED_TOKENS:
            self._num_releases += 1
            self._left[row], self._left_at[row] = list(_computed(generation)), self._num_releases
            self._left_angles[row] = generation.angles

    def _put(self, generation: Generation, row: int) -> None:
        self._holders[row] = generation
        self._left[row], self._left_at[row] = [], 0
        generation.row = row

    def _move_to(self, generation: Generation, row: int) -> None:
        """Moves a generation. The occupant of the row, or what was left there, moves to the generation's old row."""
        if generation.row == row:
            return
        origin, occupant = generation.row, self._holders[row]
        left, left_at, left_angles = self._left[row], self._left_at[row], self._left_angles[row]
        self._holders[origin] = None
        if occupant is None and len(left) < MIN_SHARED_TOKENS and self._storage.is_divisible:
            self._storage.copy(origin, row, start=0, stop=generation.num_computed)
        else:
            num_held = len(left) if occupant is None else occupant.num_computed
            self._storage.swap(origin, row, max(generation.num_computed, num_held))
            self._left[origin], self._left_at[origin], self._left_angles[origin] = left, left_at, left_angles
            if occupant is not None:
                self._put(occupant, origin)
        self._put(generation, row)

    def _close_holes(self) -> None:
        """Moves the last decoding generations into rows that others have left."""
        for hole in range(self._end):
            while self._end and self._holders[self._end - 1] is None:
                self._end -= 1
            if hole >= self._end:
                return
            last = self._holders[self._end - 1]
            if self._holders[hole] is None and last is not None:
                self._move_to(last, hole)

    def _free_row(self, after: int = 0, other_than: int = -1) -> int | None:
        """A free row beyond those that decode: the first in which nothing is left, or the one released first."""
        rows = range(max(self._end, after), len(self._holders))
        free = [row for row in rows if self._holders[row] is None and row != other_than]
        return min(free, key=lambda row: self._left_at[row], default=None)

    def _longest_shared(self, prompt: Sequence[int], angles: Angles) -> tuple[int, int]:
        """The most tokens of a prompt's beginning that a row holds, and that row. The last token never counts.

        Keys with other angles are those of other sequences.
        """
        best = 0, -1
        wanted = prompt[:-1]  # the last token is always computed, since its logits are needed
        for row, holder in enumerate(self._holders):
            if (self._left_angles[row] if holder is None else holder.angles) != angles:
                continue
            held = self._left[row] if holder is None else _computed(holder)
            best = max(best, (num_shared(wanted, held), row))
        return best if best[0] >= MIN_SHARED_TOKENS else (0, -1)


def _computed(generation: Generation) -> Iterator[int]:
    """The tokens whose keys and values a generation's row holds."""
    tokens = itertools.chain(generation.request.prompt, generation.output)
    return itertools.islice(tokens, generation.num_computed)


def num_shared(wanted: Sequence[int], held: Iterable[int]) -> int:
    """How many tokens two texts begin with alike."""
    pairs = zip(wanted, held, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
