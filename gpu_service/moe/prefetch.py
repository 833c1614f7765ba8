"""Guesses which experts the next layer will want, and has them copied while the link to the device is idle.

The guess is the next layer's router on this layer's hidden rows: rows change little from layer to layer. A copy shares
the memory's bandwidth with the CPU's experts, so that a right guess can still cost more than it brings: whether it pays
is tried, not computed.
"""

import statistics
from collections.abc import Container, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from gpu_service import metrics
from gpu_service.gpu_experts.keys import ExpertKey
from gpu_service.moe.router import route

_MIN_ACCURACY = 0.3
"""Of the guesses; below it there is nothing to try."""
_ACCURACY_DECAY = 0.98


class PrefetchSlots(Protocol):
    """Where prefetched experts go."""

    def prefetch(self, key: ExpertKey) -> object | None:
        """Starts a copy; None where there is no room, or it is on its way already."""
        ...

    def cancel_prefetch(self, key: ExpertKey) -> None:
        """Gives up a copy that nobody will use."""
        ...


class Prefetcher:
    """One for all layers. For the engine's thread."""

    def __init__(self, routers: Mapping[int, nn.Module], slots: PrefetchSlots, always: bool) -> None:
        """Guesses nothing yet.

        Args:
            routers: The router of each MoE layer that has one that can be asked. Without any, nothing is prefetched.
            slots: Where the copies go.
            always: Whether to prefetch without trying what it brings.
        """
        self._routers = routers
        self._slots = slots
        self._always = always
        self._trial = Trial()
        self._guessed: dict[int, npt.NDArray[np.int32]] = {}
        self._copies: dict[int, list[int]] = {}
        self._accuracy = 1.0

    def guess(self, layer: int, hidden: torch.Tensor) -> torch.Tensor | None:
        """The experts [rows, k] int32 on the device that the layer after this one may want; None without a guess."""
        router = self._routers.get(layer + 1)
        if router is None or not self._wanted:
            return None
        routed = route(router, hidden)
        return None if routed is None else routed[0].to(torch.int32)

    def start(self, layer: int, guessed: npt.NDArray[np.int32], not_wanted: Container[int]) -> None:
        """Copies the likeliest experts of a layer.

        Args:
            layer: The layer that was guessed for.
            guessed: [rows, k] expert ids.
            not_wanted: Experts of it that are on the device.
        """
        self._guessed[layer] = guessed
        experts, counts = np.unique(guessed, return_counts=True)
        copies = self._copies.setdefault(layer, [])
        for expert in experts[np.argsort(-counts, kind="stable")].tolist():
            # without room, or on its way already: another one may not be
            if expert not in not_wanted and self._slots.prefetch((layer, expert)) is not None:
                copies.append(expert)

    def judge(self, layer: int, counts: npt.NDArray[np.int64], streamed: Sequence[int]) -> None:
        """The layer has been planned: counts what was right and gives up the copies that the plan does not use."""
        guessed = self._guessed.pop(layer, None)
        if guessed is None:
            return
        experts = np.unique(guessed)
        right = int((counts[experts] > 0).sum())
        metrics.PREFETCH_GUESSES.labels("right").inc(right)
        metrics.PREFETCH_GUESSES.labels("wrong").inc(len(experts) - right)
        self._accuracy += (1 - _ACCURACY_DECAY) * (right / len(experts) - self._accuracy)
        for expert in self._copies.pop(layer, []):
            used = expert in streamed
            metrics.PREFETCHED_EXPERTS.labels("used" if used else "wasted").inc()
            if not used:
                self._slots.cancel_prefetch((layer, expert))

    def end_of_step(self, num_rows: int, seconds: float) -> None:
        """A batch has been computed in so many seconds."""
        if self._routers and not self._always and self._accuracy >= _MIN_ACCURACY:
            self._trial.observe(num_rows, seconds)

    @property
    def _wanted(self) -> bool:
        return self._always or (self._trial.active and self._accuracy >= _MIN_ACCURACY)


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
