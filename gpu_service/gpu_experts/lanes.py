"""The ways that bytes take from the checkpoint's memory map to a slot: a Lane for CUDA and one for the CPU.

A lane copies what it is told in the order that it is told. What is copied when is copier.py's.
"""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from fiddler import cgroup

Mark = torch.cuda.Event | None
"""A point in a stream's work; None on the CPU, where work is done when a call returns."""

_MAX_CHUNK_BYTES = 8 * 2**20  # two staging buffers stay in a last-level cache: memory is then read once and not twice
_MIN_CHUNK_BYTES = 2**20
_CHUNKS_PER_EXPERT = 4  # so that within one expert, too, a chunk is read while the one before it is sent
_MAX_THREADS = 4
_BIT_PATTERNS = {1: torch.int8, 2: torch.int16, 4: torch.int32}  # numpy has no bfloat16; a copy needs none


def chunk_bytes(slot_bytes: int) -> int:
    """How much is copied at a time, a multiple of 256."""
    wanted = min(max(-(-slot_bytes // _CHUNKS_PER_EXPERT), _MIN_CHUNK_BYTES), _MAX_CHUNK_BYTES, slot_bytes)
    return -(-wanted // 256) * 256


class Lane(Protocol):
    """Who may call what: the copier's thread `begin`, `copy` and `end`; the engine's thread everything else."""

    chunk_bytes: int
    """The most that one call of `copy` may bring."""

    def fence(self) -> Mark:
        """The point up to which the engine has given work to its stream: what it reads until there is still needed."""
        ...

    def begin(self, fence: Mark) -> None:
        """Lets the copies that follow wait for a fence."""
        ...

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copies one chunk; both are of one shape [rows, columns] and dtype, and may be strided."""
        ...

    def end(self) -> Mark:
        """The point at which all copies until now have landed."""
        ...

    def has_landed(self, mark: Mark) -> bool:
        """Whether what `end` marked is there. Does not wait."""
        ...

    def join(self, mark: Mark) -> None:
        """Lets the work that the engine gives its stream from now on come after the mark. Does not wait on CUDA."""
        ...

    def synchronize(self) -> None:
        """Waits until nothing is being computed or copied."""
        ...

    def give_back(self) -> None:
        """Returns the memory of slots that are gone to the device."""
        ...

    def close(self) -> None:
        """Ends its threads. Nothing is copied any more."""
        ...


class HostLane:
    """To slots in the CPU's memory: each chunk at once, by the copier's own thread."""

    def __init__(self, chunk_bytes: int) -> None:
        self.chunk_bytes = chunk_bytes

    def fence(self) -> Mark:
        """See Lane. The engine computes in its own thread: what it has begun is done."""
        return None

    def begin(self, fence: Mark) -> None:
        """See Lane."""

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """See Lane."""
        np.copyto(_bits(target), _bits(source))

    def end(self) -> Mark:
        """See Lane."""
        return None

    def has_landed(self, mark: Mark) -> bool:
        """See Lane."""
        return True

    def join(self, mark: Mark) -> None:
        """See Lane."""

    def synchronize(self) -> None:
        """See Lane."""

    def give_back(self) -> None:
        """See Lane."""

    def close(self) -> None:
        """See Lane."""


class CudaLane:
    """To a GPU: a chunk is read into one of two pinned buffers while the other is sent, on a stream of its own."""

    def __init__(self, device: torch.device, chunk_bytes: int, num_threads: int | None = None) -> None:
        """Takes two pinned buffers of `chunk_bytes`; so many threads read into them, None for a fair share of CPUs."""
        self.chunk_bytes = chunk_bytes
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._staging = [_pinned(chunk_bytes) for _ in range(2)]
        # blocking: a wait that spins takes a CPU from the experts
        self._sent = [torch.cuda.Event(blocking=True) for _ in range(2)]  # type: ignore[no-untyped-call]
        self._turn = 0
        self._unturned: torch.Tensor | None = None
        self._reader = _Reader(num_threads or _fair_threads())

    def fence(self) -> Mark:
        """See Lane."""
        mark: Mark = torch.cuda.current_stream(self._device).record_event()
        return mark

    def begin(self, fence: Mark) -> None:
        """See Lane."""
        if fence is not None:
            self._stream.wait_event(fence)

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """See Lane. Waits only where the buffer of two chunks ago is not sent yet."""
        staging, sent = self._staging[self._turn], self._sent[self._turn]
        self._turn = 1 - self._turn
        sent.synchronize()
        staged = _shaped(staging, source)
        self._reader.copy(_bits(source), _bits(staged))
        with torch.cuda.stream(self._stream):
            if target.is_contiguous():
                target.copy_(staged, non_blocking=True)
            else:  # a transposed layout is sent as it is stored, and turned by the device, whose memory is faster
                self._on_device(staged).copy_(staged, non_blocking=True)
                target.copy_(self._on_device(staged), non_blocking=True)
            sent.record(self._stream)

    def end(self) -> Mark:
        """See Lane."""
        mark: Mark = self._stream.record_event()
        return mark

    def has_landed(self, mark: Mark) -> bool:
        """See Lane."""
        return mark is None or bool(mark.query())  # type: ignore[no-untyped-call]

    def join(self, mark: Mark) -> None:
        """See Lane."""
        if mark is not None:
            torch.cuda.current_stream(self._device).wait_event(mark)

    def synchronize(self) -> None:
        """See Lane."""
        torch.cuda.synchronize(self._device)

    def give_back(self) -> None:
        """See Lane."""
        torch.cuda.empty_cache()

    def close(self) -> None:
        """See Lane."""
        self._reader.close()

    def _on_device(self, staged: torch.Tensor) -> torch.Tensor:
        """Memory on the device for one chunk as it is stored; used by the lane's stream alone, chunk after chunk."""
        if self._unturned is None:
            self._unturned = torch.empty(self.chunk_bytes, dtype=torch.uint8, device=self._device)
        return _shaped(self._unturned, staged)


class _Reader:
    """Copies within the CPU's memory with several threads: one alone is slower than a fast link to the device.

    Not PyTorch's own copy, which would bring up a team of OpenMP threads for its caller; between chunks they spin, on
    the CPUs that compute experts.
    """

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self._helpers = ThreadPoolExecutor(num_threads - 1, "staging") if num_threads > 1 else None

    def copy(self, source: npt.NDArray[Any], target: npt.NDArray[Any]) -> None:
        """Copies [rows, columns]."""
        if self._helpers is None:
            np.copyto(target, source)
            return
        bounds = [len(source) * part // self._num_threads for part in range(self._num_threads + 1)]
        first, *others = (slice(begin, end) for begin, end in pairwise(bounds))
        helped = [self._helpers.submit(np.copyto, target[part], source[part]) for part in others]
        np.copyto(target[first], source[first])
        for part_done in helped:
            part_done.result()

    def close(self) -> None:
        if self._helpers is not None:
            self._helpers.shutdown()


def build_lane(device: torch.device, slot_bytes: int) -> Lane:
    """The lane to a device, for slots of so many bytes."""
    if device.type == "cpu":
        return HostLane(chunk_bytes(slot_bytes))
    return CudaLane(device, chunk_bytes(slot_bytes))


def _fair_threads() -> int:
    return max(1, min(_MAX_THREADS, cgroup.usable_cpus() // 4))


def _pinned(num_bytes: int) -> torch.Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)


def _shaped(memory: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The first bytes of a buffer, as a contiguous tensor of another's shape and dtype."""
    return memory[: like.nbytes].view(like.dtype).view(like.shape)


def _bits(tensor: torch.Tensor) -> npt.NDArray[Any]:
    return tensor.view(_BIT_PATTERNS[tensor.itemsize]).numpy()
