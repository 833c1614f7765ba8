"""Copies experts to the device in the background: one thread, chunk by chunk, at every chunk the most urgent copy.

It knows tensors and where they go. Which expert is copied when, and into which slot, is expert_slots.py's; how a chunk
gets there is copy_lanes.py's.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import TypeAlias

import torch

from fiddler.expert_math import ExpertWeights
from gpu_service.gpu_experts.lanes import Lane, Mark

SourceAndTarget: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""What is copied at a time: two tensors of one shape [rows, columns]."""


class CopyCancelledError(RuntimeError):
    """The copy was given up before it was done."""


class Urgency(IntEnum):
    """Why something is copied; the least comes first."""

    DEMAND = 0
    """The engine waits for it."""
    PREFETCH = 1
    """The next layer may want it."""
    SWAP = 2
    """It will be of use some day."""


class Job:
    """One expert's copy. The engine's thread makes it and reads it; the copier's thread carries it out."""

    def __init__(
        self,
        source: ExpertWeights,
        target: ExpertWeights,
        urgency: Urgency,
        fence: Mark = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Describes a copy.

        Args:
            source: Tensors in the CPU's memory, of any strides.
            target: Tensors on the device, of the same shapes and dtypes.
            urgency: Why it is copied.
            fence: The point until which the target is still read.
            check: Called before each chunk; raises where the source must not be read.
        """
        self.urgency = urgency
        self.total_bytes = source.nbytes
        self.done_bytes = 0
        self.busy_seconds = 0.0
        """What the copier's thread spent on it, others' chunks in between left out."""
        self.mark: Mark = None
        """The point at which all of it has landed. Valid once it has ended without an error."""
        self.error: Exception | None = None
        self._source = source
        self._target = target
        self._fence = fence
        self._check = check
        self._chunks: Iterator[SourceAndTarget] | None = None
        self._ended = threading.Event()

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will be copied: all is on its way to the device, or it failed or was cancelled."""
        return self._ended.is_set()

    @property
    def fraction_left(self) -> float:
        """The part of its bytes that is still to be copied."""
        return 1 - self.done_bytes / self.total_bytes

    def wait(self) -> None:
        """Waits for its end.

        Raises:
            CopyCancelledError: It was cancelled.
            Exception: Whatever went wrong when it was copied.
        """
        self._ended.wait()
        if self.error is not None:
            raise self.error

    def copy_chunk(self, lane: Lane) -> bool:
        """Copies what comes next. Returns whether that was all. For the copier's thread, as `end` is."""
        if self._chunks is None:
            lane.begin(self._fence)
            self._chunks = _chunks(self._source, self._target, lane.chunk_bytes)
        self._check()
        source, target = next(self._chunks)
        lane.copy(source, target)
        self.done_bytes += source.nbytes
        if self.done_bytes < self.total_bytes:
            return False
        self.mark = lane.end()
        return True

    def end(self, error: Exception | None) -> None:
        """Lets go of who waits."""
        self.error = error
        self._ended.set()


class Copier:
    """Carries out jobs, one chunk at a time. Everything but the lane's copying is safe to call from any thread."""

    def __init__(self, lane: Lane) -> None:
        """Starts the thread."""
        self.copied_bytes = dict.fromkeys(Urgency, 0)
        """Since the start, by how urgent it was when it was copied."""
        self._lane = lane
        self._queues: dict[Urgency, deque[Job]] = {urgency: deque() for urgency in Urgency}
        self._changed = threading.Condition()
        self._current: Job | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="copier", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Takes a job, behind those that are as urgent."""
        with self._changed:
            if self._closed:
                raise CopyCancelledError("the copier is closed")
            self._queues[job.urgency].append(job)
            self._changed.notify_all()

    def set_urgency(self, job: Job, urgency: Urgency) -> None:
        """Moves a job behind those of another urgency; nothing where it has ended."""
        with self._changed:
            if job.urgency != urgency and job in self._queues[job.urgency]:
                self._queues[job.urgency].remove(job)
                self._queues[urgency].append(job)
            job.urgency = urgency

    def cancel(self, job: Job) -> None:
        """Gives up a job; nothing where it has ended. The chunk in hand is still copied, before any other job's."""
        with self._changed:
            if job in self._queues[job.urgency]:
                self._queues[job.urgency].remove(job)
                job.end(CopyCancelledError("the copy was cancelled"))

    def quiesce(self) -> None:
        """Waits until no chunk of a job that has ended is in hand: a cancelled one's target is written no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._current is None or not self._current.has_ended)

    def close(self) -> None:
        """Cancels all jobs, and ends the thread after the chunk in hand."""
        with self._changed:
            self._closed = True
            for queue in self._queues.values():
                for job in queue:
                    job.end(CopyCancelledError("the copier was closed"))
                queue.clear()
            self._changed.notify_all()
        self._thread.join()

    @torch.inference_mode()
    def _run(self) -> None:
        while self._copy_next():
            pass

    def _copy_next(self) -> bool:
        """Copies one chunk, of whatever is most urgent. A function, since a job held while idle would hold memory."""
        job = self._next()
        if job is None:
            return False
        began, done_before = time.perf_counter(), job.done_bytes
        error, is_all = None, True
        try:
            is_all = job.copy_chunk(self._lane)
        except Exception as raised:
            error = raised
        job.busy_seconds += time.perf_counter() - began
        self._put_down(job, job.done_bytes - done_before, is_all, error)
        return True

    def _next(self) -> Job | None:
        """Waits for the most urgent job and takes its next chunk in hand; None when closed."""
        with self._changed:
            while True:
                if self._closed:
                    return None
                for queue in self._queues.values():
                    if queue:
                        self._current = queue[0]
                        return self._current
                self._changed.wait()

    def _put_down(self, job: Job, num_bytes: int, is_all: bool, error: Exception | None) -> None:
        with self._changed:
            self._current = None
            self.copied_bytes[job.urgency] += num_bytes
            if is_all and not job.has_ended:  # by being cancelled meanwhile
                self._queues[job.urgency].remove(job)
                job.end(error)
            self._changed.notify_all()


def _chunks(source: ExpertWeights, target: ExpertWeights, chunk_bytes: int) -> Iterator[SourceAndTarget]:
    """Pieces of at most `chunk_bytes`, in the order in which the source lies in memory."""
    targets = dict(target.tensors())
    for name, tensor in source.tensors():
        yield from _pieces(*_rows(tensor, targets[name]), chunk_bytes // tensor.itemsize)


def _rows(source: torch.Tensor, target: torch.Tensor) -> SourceAndTarget:
    """Both as [rows, columns] such that neighbours in a row are neighbours in the source, or nearly."""
    if source.dim() == 1:
        return source[None], target[None]
    return (source.T, target.T) if source.stride(0) < source.stride(1) else (source, target)


def _pieces(source: torch.Tensor, target: torch.Tensor, max_elements: int) -> Iterator[SourceAndTarget]:
    rows, columns = source.shape
    if columns > max_elements:
        for row in range(rows):
            for part in _even_parts(columns, max_elements):
                yield source[row : row + 1, part], target[row : row + 1, part]
    else:
        for part in _even_parts(rows, max_elements // columns):
            yield source[part], target[part]


def _even_parts(length: int, longest: int) -> Iterator[slice]:
    """Slices of at most `longest`, as few and as even as can be."""
    count = -(-length // longest)
    for part in range(count):
        yield slice(length * part // count, length * (part + 1) // count)
