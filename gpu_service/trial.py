"""Finds out by trying whether something makes steps faster. Pure Python."""

import statistics

_WINDOW_STEPS = 24
_REST_STEPS = 4096
_MARGIN = 0.02


class Trial:
    """Does a thing for some steps and leaves it for as many, compares, and keeps to what was faster for a while.

    Steps are compared at one number of rows: a trial begins anew when that changes.
    """

    def __init__(self, window_steps: int = _WINDOW_STEPS, rest_steps: int = _REST_STEPS) -> None:
        self._window_steps = window_steps
        self._rest_steps = rest_steps
        self._num_rows = 0
        self._seconds: dict[bool, list[float]] = {True: [], False: []}
        self._left = 0
        self.active = True
        """Whether the next step is to be done with it."""

    def observe(self, num_rows: int, seconds: float) -> None:
        """A step was done as `active` said."""
        if self._left > 0:
            self._left -= 1
            if self._left == 0:
                self._restart(num_rows)
            return
        if num_rows != self._num_rows:
            self._restart(num_rows)
        mine = self._seconds[self.active]
        mine.append(seconds)
        if len(mine) < self._window_steps:
            return
        if self.active:
            self.active = False
            return
        with_it, without = statistics.median(self._seconds[True]), statistics.median(mine)
        self.active = with_it < without * (1 - _MARGIN)
        self._left = self._rest_steps

    def _restart(self, num_rows: int) -> None:
        self._num_rows = num_rows
        self._seconds = {True: [], False: []}
        self.active = True
