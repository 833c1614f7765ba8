"""The link from host memory to the GPU in virtual time: one copy at a time, demanded copies before background ones."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from gpu_service.gpu_experts.keys import ExpertKey

_CHUNK_BYTES = 32 * 2**20
"""A background copy yields to a demanded one between two chunks, which have the size of a staging buffer."""


@dataclass(slots=True)
class _Background:
    key: ExpertKey
    left_bytes: float
    total_bytes: float
    landed: Callable[[], None]


class Overlap(NamedTuple):
    """When two kinds of work that begin together and use the same memory end."""

    slowdown: float
    """By which factor each takes longer while both run."""
    both_seconds: float
    """Seconds for which both run."""

    def end(self, alone_seconds: float) -> float:
        """Seconds after which work of either kind ends that takes `alone_seconds` alone."""
        slowed = alone_seconds * self.slowdown
        return slowed if slowed <= self.both_seconds else alone_seconds + self.both_seconds * (1 - 1 / self.slowdown)


def overlap(*, first_seconds: float, first_share: float, second_seconds: float, second_share: float) -> Overlap:
    """Two kinds of work that each use a share of the memory's bandwidth. If the sum exceeds 1, both slow down alike."""
    slowdown = max(1.0, first_share + second_share)
    return Overlap(slowdown, min(first_seconds, second_seconds) * slowdown)


class Link:
    """Copies to the GPU. Time only moves forward."""

    def __init__(self, bytes_per_second: float) -> None:
        self.bytes_per_second = bytes_per_second
        self.copied_bytes = 0.0
        """All bytes copied to the GPU."""
        self._now = 0.0
        self._free_at = 0.0
        self._background: deque[_Background] = deque()

    def advance(self, now: float) -> None:
        """Runs background copies until `now`, while no demanded copy occupies the link."""
        begin = max(self._now, self._free_at)
        self._now = max(self._now, now)
        room = (self._now - begin) * self.bytes_per_second
        while self._background and room > 0:
            copy = self._background[0]
            moved = min(room, copy.left_bytes)
            copy.left_bytes -= moved
            room -= moved
            self.copied_bytes += moved
            # less than a byte left is rounding
            if copy.left_bytes < 1:
                self._background.popleft()
                copy.landed()

    def in_background(self, key: ExpertKey, num_bytes: float, landed: Callable[[], None]) -> None:
        """Queues a copy for when the link is idle; `landed` is called when it has arrived."""
        self._background.append(_Background(key, num_bytes, num_bytes, landed))

    def pending(self, layer: int) -> dict[int, float]:
        """Experts of a layer whose background copy has not landed, with the fraction that is left."""
        return {copy.key[1]: copy.left_bytes / copy.total_bytes for copy in self._background if copy.key[0] == layer}

    @property
    def background_seconds(self) -> float:
        """Seconds that all background copies still take."""
        return sum(copy.left_bytes for copy in self._background) / self.bytes_per_second

    @property
    def num_background(self) -> int:
        """Background copies that have not landed."""
        return len(self._background)

    def claim(self, key: ExpertKey) -> float:
        """Turns a background copy into a demanded one, with which it lands; returns the bytes that are left."""
        for copy in self._background:
            if copy.key == key:
                self._background.remove(copy)
                copy.landed()
                return copy.left_bytes
        raise KeyError(key)

    def demand_begins(self, now: float) -> float:
        """When a copy that is demanded `now` can start."""
        self.advance(now)
        begin = max(now, self._free_at)
        if self._background and begin == now:
            done = self._background[0].total_bytes - self._background[0].left_bytes
            if done > 0:
                rest = min(self._background[0].left_bytes, _CHUNK_BYTES - done % _CHUNK_BYTES)
                begin += rest / self.bytes_per_second
                self.advance(begin)
        return begin

    def occupy(self, until: float, num_bytes: float) -> None:
        """Records a demanded copy that took until `until`."""
        self._free_at = max(self._free_at, until)
        self.copied_bytes += num_bytes
        self._now = max(self._now, until)
