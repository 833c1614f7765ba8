"""Says what the engine computes next. Knows requests and rows of the cache, no tensors; torch is not imported here.

Rows 0 to D-1 of the cache hold the D requests that decode, and row D the one whose prompt is being computed, so that
every batch is a run of rows and its attention reads a view. A prompt is computed in chunks, and between two of them
everyone else decodes one token.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from gpu_service.request import Request


class QueueFullError(Exception):
    """As many requests wait as may."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one forward computes: requests in adjacent rows, each with as many tokens as the others."""

    requests: tuple[Request, ...]
    first_row: int
    token_ids: list[list[int]]
    """[requests, tokens]"""
    positions: list[list[int]]
    """[requests, tokens]"""
    samples: bool
    """Whether the last token's logits are the next token's: not for a chunk within a prompt."""


@dataclass(frozen=True, slots=True)
class Move:
    """A row of the cache that must be copied over another one, up to a length, before anything else is computed."""

    source: int
    target: int
    length: int


class Scheduler:
    """Requests in arrival order: waiting, one in prefill, the others decoding."""

    def __init__(self, max_slots: int, max_waiting: int, prefill_chunk: int) -> None:
        self._max_slots = max_slots
        self._max_waiting = max_waiting
        self._prefill_chunk = prefill_chunk
        self._waiting: deque[Request] = deque()
        self._prefilling: Request | None = None
        self._decoding: list[Request] = []
        self._prefilled_last = False

    @property
    def num_waiting(self) -> int:
        """Requests that have no slot."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests that have a slot."""
        return len(self._decoding) + (self._prefilling is not None)

    @property
    def requests(self) -> list[Request]:
        """All of them, waiting ones last."""
        prefilling = [self._prefilling] if self._prefilling else []
        return [*self._decoding, *prefilling, *self._waiting]

    def add(self, request: Request) -> None:
        """Lets a request wait for a slot.

        Raises:
            QueueFullError: Too many wait.
        """
        if self.num_running + len(self._waiting) >= self._max_slots + self._max_waiting:
            raise QueueFullError(f"{len(self._waiting)} requests wait already")
        self._waiting.append(request)

    def next_batch(self) -> Batch | None:
        """What to compute next; None when there is nothing."""
        if self._prefilling is None and self._waiting and len(self._decoding) < self._max_slots:
            self._prefilling = self._waiting.popleft()
        if self._prefilling and not (self._prefilled_last and self._decoding):
            self._prefilled_last = True
            return self._prefill_batch(self._prefilling)
        self._prefilled_last = False
        return self._decode_batch() if self._decoding else None

    def commit(self, batch: Batch, tokens: Sequence[int]) -> None:
        """Records that a batch was computed.

        Args:
            batch: What next_batch returned last.
            tokens: The next token of each of its requests, or nothing where the batch does not sample.
        """
        for request, token_ids in zip(batch.requests, batch.token_ids, strict=True):
            request.num_computed += len(token_ids)
        if not batch.samples:
            return
        for request, token in zip(batch.requests, tokens, strict=True):
            request.output.append(token)
        if batch.requests[0] is self._prefilling:
            self._decoding.append(self._prefilling)
            self._prefilling = None

    def remove(self, request: Request) -> list[Move]:
        """Forgets a request and closes the hole it leaves. Returns the moves that do that in the cache, in order."""
        if request in self._waiting:
            self._waiting.remove(request)
            return []
        if request is self._prefilling:
            self._prefilling = None
            return []
        if request not in self._decoding:
            return []
        moves = []
        hole = self._decoding.index(request)
        last = self._decoding.pop()
        last_row = len(self._decoding)
        if last is not request:
            self._decoding[hole] = last
            moves.append(Move(last_row, hole, last.num_computed))
        if self._prefilling and self._prefilling.num_computed:
            moves.append(Move(last_row + 1, last_row, self._prefilling.num_computed))
        return moves

    def _prefill_batch(self, request: Request) -> Batch:
        start = request.num_computed
        end = min(start + self._prefill_chunk, len(request.prompt))
        return Batch(
            requests=(request,),
            first_row=len(self._decoding),
            token_ids=[request.prompt[start:end]],
            positions=[list(range(start, end))],
            samples=end == len(request.prompt),
        )

    def _decode_batch(self) -> Batch:
        return Batch(
            requests=tuple(self._decoding),
            first_row=0,
            token_ids=[[request.output[-1]] for request in self._decoding],
            positions=[[request.num_computed] for request in self._decoding],
            samples=True,
        )
