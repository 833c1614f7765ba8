"""How soon a device does what is enqueued: every order that CUDA allows is somewhere between these."""

import random
from collections.abc import Callable, Sequence
from typing import Final, Literal, get_args

from tests.support.imitated_cuda.streams import Stream

Schedule = Literal["eager", "late", "random", "copies first", "compute first"]

SCHEDULES: Final[tuple[Schedule, ...]] = get_args(Schedule)
"""eager: everything at once. late: only what something waits for. random: now and then, of any stream.
copies first, compute first: all of the other streams or of the default one, as far as their waits allow."""

_MOST_AT_ONCE = 3


class Pace:
    """Does some of what is enqueued, as a schedule says."""

    def __init__(self, schedule: Schedule, seed: int) -> None:
        self.schedule = schedule
        self._random = random.Random(seed)
        self._wanted: dict[str, Callable[[Stream], bool]] = {
            "eager": lambda stream: True,
            "copies first": lambda stream: not stream.is_default,
            "compute first": lambda stream: stream.is_default,
        }

    def go_on(self, streams: Sequence[Stream]) -> None:
        """Called whenever something was enqueued."""
        if self.schedule == "late":
            return
        if self.schedule == "random":
            for _ in range(self._random.randrange(_MOST_AT_ONCE)):
                self._random.choice(streams).advance()
            return
        chosen = [stream for stream in streams if self._wanted[self.schedule](stream)]
        while sum(stream.advance() for stream in chosen):  # each of them, whatever the others do
            pass
