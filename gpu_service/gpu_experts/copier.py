"""Copies experts to the device in the background: one thread, chunk by chunk, each time from the most urgent copy.

The copier knows source and target tensors. expert_slots.py decides which expert is copied when, and into which slot;
lanes.py transports a chunk.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import TypeAlias

import torch

from fiddler.expert_math import ExpertWeights
from gpu_service.errors import panics_as_errors
from gpu_service.gpu_experts.lanes import Lane, Mark

SourceAndTarget: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""What is copied at a time: two tensors of one shape [rows, columns]."""


class CopyCancelledError(RuntimeError):
    """The copy was cancelled before it was complete."""


class Urgency(IntEnum):
    """Why an expert is copied. The lowest value is copied first."""

    DEMAND = 0
    """The engine waits for it."""
    PREFETCH = 1
    """The next layer may use it."""
    SWAP = 2
    """It is to be resident from some later step on."""


class Job:
    """One expert's copy. The engine's thread creates and reads it; the copier's thread carries it out."""

    def __init__(
        self,
        source: ExpertWeights,
        target: ExpertWeights,
        urgency: Urgency,
        *,
        fence: Mark = None,
        landed: Mark = None,
        check: Callable[[], None] = lambda: None,
        read: Callable[[], ExpertWeights] | None = None,
    ) -> None:
        """Describes a copy.

        Args:
            source: Tensors in the CPU's memory, of any strides.
            target: Tensors on the device, of the same shapes and dtypes.
            urgency: Why it is copied.
            fence: The point of the engine's stream until which the target is still read.
            landed: A mark of an earlier copy to the target, which is used again for this one's.
            check: Called before each chunk; raises if the source must not be read.
            read: Makes the source, once the copying begins, in the copier's thread; `source` then only has its shapes.
        """
        self.urgency = urgency
        self.total_bytes = source.nbytes
        self.done_bytes = 0
        self.busy_seconds = 0.0
        """What the copier's thread spent on this copy, without other copies' chunks in between."""
        self.mark: Mark = None
        """The point at which all bytes have landed. Valid once the copy has ended without an error."""
        self.error: Exception | None = None
        self._source = source
        self._target = target
        self._fence = fence
        self._landed = landed
        self._check = check
        self._read = read
        self._chunks: Iterator[SourceAndTarget] | None = None
        self._ended = threading.Event()

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will be copied: all bytes are sent, or the copy failed or was cancelled."""
        return self._ended.is_set()

    @property
    def fraction_left(self) -> float:
        """The fraction of its bytes that is still to be copied."""
        return 1 - self.done_bytes / self.total_bytes

    def wait(self) -> None:
        """Waits until the copy has ended.

        Raises:
            CopyCancelledError: It was cancelled.
            Exception: What the copying raised.
        """
        self._ended.wait()
        if self.error is not None:
            raise self.error

    def copy_chunk(self, lane: Lane) -> bool:
        """Copies the next chunk. Returns whether it was the last. Only for the copier's thread, as is `end`."""
        self._check()
        if self._chunks is None:
            lane.begin(self._fence)
            source = self._source if self._read is None else self._read()
            self._chunks = _chunks(source, self._target, lane.chunk_bytes)
        piece, target = next(self._chunks)
        lane.copy(piece, target)
        self.done_bytes += piece.nbytes
        if self.done_bytes < self.total_bytes:
            return False
        self.mark = lane.end(self._landed)
        return True

    def end(self, error: Exception | None) -> None:
        """Marks the copy as ended and wakes the threads that wait for it."""
        self.error = error
        self._ended.set()


class Copier:
    """Carries out jobs, one chunk at a time. Its methods may be called from any thread."""

    def __init__(self, lane: Lane) -> None:
        """Starts the thread."""
        self.copied_bytes = dict.fromkeys(Urgency, 0)
        """Bytes copied since the start, by their urgency at that time."""
        self._lane = lane
        self._queues: dict[Urgency, deque[Job]] = {urgency: deque() for urgency in Urgency}
        self._changed = threading.Condition()
        self._current: Job | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="copier", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queues a job behind those of the same urgency.

        Raises:
            CopyCancelledError: The copier is closed.
        """
        with self._changed:
            if self._closed:
                raise CopyCancelledError("the copier is closed")
            self._queues[job.urgency].append(job)
            self._changed.notify_all()

    def set_urgency(self, job: Job, urgency: Urgency) -> None:
        """Moves a job behind those of another urgency. Does nothing if it has ended."""
        with self._changed:
            if job.urgency != urgency and job in self._queues[job.urgency]:
                self._queues[job.urgency].remove(job)
                self._queues[urgency].append(job)
            job.urgency = urgency

    def cancel(self, job: Job) -> None:
        """Cancels a job. Does nothing if it has ended. A chunk that is being copied is still completed."""
        with self._changed:
            if job in self._queues[job.urgency]:
                self._queues[job.urgency].remove(job)
                job.end(CopyCancelledError("the copy was cancelled"))

    def quiesce(self) -> None:
        """Waits until no chunk of an ended job is being copied, so that a cancelled job's target is written no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._current is None or not self._current.has_ended)

    def close(self) -> None:
        """Cancels all jobs, and ends the thread after the current chunk."""
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
        """Copies one chunk of the most urgent job. Returns False when closed.

        A function of its own, so that no local variable keeps an ended job's memory while the thread is idle.
        """
        job = self._next()
        if job is None:
            return False
        began, done_before = time.perf_counter(), job.done_bytes
        error, is_all = None, True
        try:
            with panics_as_errors():
                is_all = job.copy_chunk(self._lane)
        except Exception as raised:
            error = raised
        job.busy_seconds += time.perf_counter() - began
        self._put_down(job, num_bytes=job.done_bytes - done_before, is_all=is_all, error=error)
        return True

    def _next(self) -> Job | None:
        """Waits for the most urgent job and makes it the current one; None when closed."""
        with self._changed:
            while True:
                if self._closed:
                    return None
                for queue in self._queues.values():
                    if queue:
                        self._current = queue[0]
                        return self._current
                self._changed.wait()

    def _put_down(self, job: Job, *, num_bytes: int, is_all: bool, error: Exception | None) -> None:
        """Ends the current chunk, and the job if that was all of it."""
        with self._changed:
            self._current = None
            self.copied_bytes[job.urgency] += num_bytes
            if is_all and not job.has_ended:  # it has ended if it was cancelled meanwhile
                self._queues[job.urgency].remove(job)
                job.end(error)
            self._changed.notify_all()


def _chunks(source: ExpertWeights, target: ExpertWeights, chunk_bytes: int) -> Iterator[SourceAndTarget]:
    """Yields pieces of at most `chunk_bytes`, in the order of the source's memory."""
    targets = dict(target.tensors())
    for name, tensor in source.tensors():
        yield from _pieces(*_rows(tensor, targets[name]), chunk_bytes // tensor.itemsize)


def _rows(source: torch.Tensor, target: torch.Tensor) -> SourceAndTarget:
    """Returns both as [rows, columns], turned so that a row of the source is contiguous in memory, or nearly."""
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
    """Yields slices of at most `longest`, as few and as even as possible."""
    count = -(-length // longest)
    for part in range(count):
        yield slice(length * part // count, length * (part + 1) // count)
