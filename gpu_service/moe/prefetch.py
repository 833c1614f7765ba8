"""Guesses which experts the next layer will use, and has them copied while the link to the device is idle.

The guess is what the next layer's router chooses for this layer's hidden rows, which change little from layer to layer.
A copy shares the memory's bandwidth with the experts on the CPU, so that even a right guess can cost more than it
saves: `Trial` finds out whether prefetching pays.
"""

import statistics
from collections.abc import Container, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from gpu_service import metrics
from gpu_service.gpu_experts.expert_slots import ExpertSlots
from gpu_service.moe.router import route

_MIN_ACCURACY = 0.3
"""The least share of right guesses with which prefetching is tried at all."""
_ACCURACY_DECAY = 0.98
"""Weight of the accuracy so far against that of the newest layer."""
_WINDOW_STEPS = 24
"""Steps with prefetching, and as many without, whose medians a trial compares."""
_REST_STEPS = 4096
"""Steps until the next trial."""
_MARGIN = 0.02
"""By which share steps must be faster with prefetching: medians differ by so much without cause."""


class Prefetcher:
    """One for all layers. For the engine's thread."""

    def __init__(self, routers: Mapping[int, nn.Module], slots: ExpertSlots, always: bool) -> None:
        """Guesses nothing yet.

        Args:
            routers: By MoE layer, its router, if that is called with rows alone. Without any, nothing is prefetched.
            slots: Holds what is copied.
            always: Whether to prefetch without a trial.
        """
        self._routers = routers
        self._slots = slots
        self._always = always
        self._trial = Trial()
        self._guessed: dict[int, npt.NDArray[np.int32]] = {}
        self._copies: dict[int, list[int]] = {}
        self._accuracy = 1.0

    def guess(self, layer: int, hidden: torch.Tensor) -> torch.Tensor | None:
        """Guesses the experts of the layer after this one: [rows, k] int32 on the device; None without a guess."""
        router = self._routers.get(layer + 1)
        if router is None or not self._wanted:
            return None
        routed = route(router, hidden)
        return None if routed is None else routed[0].to(torch.int32)

    def start(self, layer: int, guessed: npt.NDArray[np.int32], not_wanted: Container[int]) -> None:
        """Copies the experts of a layer that were guessed most often, for as long as there is room.

        Args:
            layer: The layer that the guess is about.
            guessed: [rows, k] expert ids, in memory that may hold others after this call.
            not_wanted: Its experts that are on the device already.
        """
        self._guessed[layer] = guessed.copy()
        experts, counts = np.unique(guessed, return_counts=True)
        copies = self._copies.setdefault(layer, [])
        for expert in experts[np.argsort(-counts, kind="stable")].tolist():
            # a refused one does not end the loop: it may be on its way already, and there may be room for the next
            if expert not in not_wanted and self._slots.prefetch((layer, expert)) is not None:
                copies.append(expert)

    def judge(self, layer: int, counts: npt.NDArray[np.int64], streamed: Sequence[int]) -> None:
        """Compares a layer's plan with the guess: counts right guesses, gives up copies that the plan does not use."""
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
        """Tells the trial how long a batch of so many rows took."""
        if self._routers and not self._always and self._accuracy >= _MIN_ACCURACY:
            self._trial.observe(num_rows, seconds)

    @property
    def _wanted(self) -> bool:
        return self._always or (self._trial.active and self._accuracy >= _MIN_ACCURACY)


class Trial:
    """Tries something for some steps and leaves it out for as many, then keeps to the faster choice for a while.

    Only steps of the same number of rows are compared: a trial restarts when that number changes.
    """

    def __init__(self, window_steps: int = _WINDOW_STEPS, rest_steps: int = _REST_STEPS) -> None:
        self._window_steps = window_steps
        self._rest_steps = rest_steps
        self._num_rows = 0
        self._seconds: dict[bool, list[float]] = {True: [], False: []}
        self._left = 0
        self.active = True
        """Whether the next step is done with what is tried."""

    def observe(self, num_rows: int, seconds: float) -> None:
        """Notes how long a step took that was done as `active` said."""
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
