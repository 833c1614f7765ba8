"""Lanes for tests: one that copies only as far as a test lets it, and one that imitates a device with two streams."""

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import torch

from gpu_service.gpu_experts.lanes import HostLane, Mark

SECONDS = 20


class GatedLane(HostLane):
    """Copies a chunk for each permit that a test gives."""

    def __init__(self, chunk_bytes: int) -> None:
        super().__init__(chunk_bytes)
        self.copied: list[int] = []
        """The address of each chunk's source."""
        self.failure: Exception | None = None
        self._changed = threading.Condition()
        self._permits = 0
        self._at_gate = 0

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        with self._changed:
            self._at_gate += 1
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._permits > 0, SECONDS)
            self._permits -= 1
            self._at_gate -= 1
        if self.failure is not None:
            raise self.failure
        super().copy(source, target)
        with self._changed:
            self.copied.append(source.data_ptr())
            self._changed.notify_all()

    def wait_at_gate(self) -> None:
        """Waits until a chunk is chosen and waits for its permit."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._at_gate > 0, SECONDS)

    def let_through(self, chunks: int = 1) -> None:
        """Permits some chunks."""
        with self._changed:
            self._permits += chunks
            self._changed.notify_all()

    def step(self, chunks: int = 1) -> None:
        """Permits some chunks and waits until they are copied."""
        goal = len(self.copied) + chunks
        self.let_through(chunks)
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.copied) >= goal, SECONDS)

    def open(self) -> None:
        """Permits everything from now on."""
        self.let_through(10**9)


class Stream:
    """Work that a test carries out, in order."""

    def __init__(self) -> None:
        self.work: deque[Callable[[], bool]] = deque()

    def run(self, work: Callable[[], Any]) -> None:
        """Enqueues work."""

        def done() -> bool:
            work()
            return True

        self.work.append(done)

    def record(self) -> "Point":
        point = Point()
        self.run(point.reach)
        return point

    def wait(self, point: "Point") -> None:
        self.work.append(lambda: point.reached)

    def advance(self) -> bool:
        """Carries out the next work, if its marks allow. Returns whether it did."""
        if not self.work or not self.work[0]():
            return False
        self.work.popleft()
        return True


class Point:
    """A point in a stream's work."""

    reached = False

    def reach(self) -> None:
        self.reached = True


class TwoStreamsLane(HostLane):
    """Enqueues copies and computations, as on a GPU, to be carried out in any order that their marks allow."""

    def __init__(self, chunk_bytes: int) -> None:
        super().__init__(chunk_bytes)
        self.compute = Stream()
        self.copies = Stream()

    def fence(self, mark: Mark = None) -> Mark:
        return cast("Mark", self.compute.record())

    def begin(self, fence: Mark) -> None:
        if fence is not None:
            self.copies.wait(cast("Point", fence))

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        staged = source.clone()
        self.copies.run(lambda: super(TwoStreamsLane, self).copy(staged, target))

    def end(self, mark: Mark = None) -> Mark:
        return cast("Mark", self.copies.record())

    def has_landed(self, mark: Mark) -> bool:
        return cast("Point", mark).reached

    def join(self, mark: Mark) -> None:
        self.compute.wait(cast("Point", mark))

    def synchronize(self) -> None:
        while self.copies.advance() or self.compute.advance():
            pass
        assert not self.copies.work, "a copy waits for a mark that is never reached"
        assert not self.compute.work, "a computation waits for a mark that is never reached"
