"""How much memory keys and values may take: which requests fit now, and which never will. Imports no torch.

Storage is rectangular, rows x positions, since attention reads rows as one view. Requests together need the number of
their rows times the length of the longest.
"""

from dataclasses import dataclass
from typing import Literal

from gpu_service.engine.request import Request
from gpu_service.errors import FlagError, NeverFitsError

GIB = 2**30
AUTO_SHARE = 0.25
"""The default share of the memory that is free at start-up."""

_LENGTH_STEP = 64  # rows are a little longer than needed, so that the next request need not reshape the storage


@dataclass(frozen=True, slots=True, kw_only=True)
class KvBudget:
    """The memory of keys and values, counted in tokens of one row, and of recurrent states."""

    num_tokens: int
    token_bytes: int
    """Bytes of one token's keys and values in all layers."""
    max_rows: int
    max_length: int
    """Tokens of the longest row."""
    row_bytes: int = 0
    """Bytes of a row of any length: the states of recurrent layers, which do not grow."""

    @classmethod
    def resolve(
        cls,
        kv_memory: float | Literal["auto"],
        *,
        token_bytes: int,
        max_rows: int,
        max_length: int,
        free_bytes: int,
        row_bytes: int = 0,
    ) -> "KvBudget":
        """The budget for a given amount of memory: at most `max_rows` rows of `max_length` tokens.

        Args:
            kv_memory: GiB, or "auto" for a share of the free memory.
            token_bytes: See KvBudget.
            max_rows: See KvBudget.
            max_length: See KvBudget.
            free_bytes: Free memory of the device that stores keys and values.
            row_bytes: See KvBudget.

        Raises:
            FlagError: The memory does not hold two tokens in addition to all rows' states.
        """
        num_bytes = int(free_bytes * AUTO_SHARE) if kv_memory == "auto" else int(kv_memory * GIB)
        num_tokens = min((num_bytes - max_rows * row_bytes) // token_bytes, max_rows * max_length)
        if num_tokens < 2:
            states = (
                f" in addition to the states of {max_rows} rows (--max-slots), {row_bytes} bytes each"
                if row_bytes
                else ""
            )
            raise FlagError(
                f"--kv-memory: {num_bytes} bytes do not hold two tokens of {token_bytes} bytes each{states}"
            )
        return cls(
            num_tokens=num_tokens,
            token_bytes=token_bytes,
            max_rows=max_rows,
            max_length=max_length,
            row_bytes=row_bytes,
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of all keys, values and states."""
        return self.num_tokens * self.token_bytes + self.max_rows * self.row_bytes

    def shape(self, num_rows: int, length: int) -> tuple[int, int] | None:
        """Rows and positions of a storage that holds so many rows of that length; None if the budget has no room."""
        if num_rows > self.max_rows or length > self.max_length or num_rows * length > self.num_tokens:
            return None
        if self.max_rows * self.max_length <= self.num_tokens:
            return self.max_rows, self.max_length
        rounded = -(-length // _LENGTH_STEP) * _LENGTH_STEP
        length = min(rounded, self.max_length, self.num_tokens // num_rows)
        return min(self.max_rows, self.num_tokens // length), length

    def longest(self, num_rows: int) -> int:
        """Tokens that each of so many rows may hold when nothing else is stored."""
        return min(self.max_length, self.num_tokens // num_rows)

    def check(self, request: Request) -> None:
        """Checks that a request fits when nothing else is stored.

        Raises:
            NeverFitsError: It does not fit.
        """
        rows = request.num_rows
        if rows > self.max_rows:
            field = "n" if request.beam is None else "beam_search.num_beams"
            raise NeverFitsError(field, f"at most {self.max_rows} are computed at one time (--max-slots), got {rows}")
        if self.shape(rows, request.max_length) is None:
            raise NeverFitsError("max_tokens", self._too_long(request))

    def _too_long(self, request: Request) -> str:
        rows, room = request.num_rows, self.longest(request.num_rows) - len(request.prompt)
        needed = rows * request.max_length * self.token_bytes
        available = self.num_tokens * self.token_bytes
        return (
            f"a prompt of {len(request.prompt)} tokens and {request.ending.max_tokens} more, in {rows} "
            f"{'row' if rows == 1 else 'rows'}, may need {needed} bytes of keys and values, and {available} "
            f"are available (--kv-memory), which leaves room for {max(room, 0)} after the prompt"
        )
