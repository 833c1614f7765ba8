"""How bytes get from the checkpoint's memory map to a slot: one Lane for CUDA and one for the CPU.

A lane copies chunks in the order of the calls. copier.py decides what is copied when.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import override

from fiddler import cgroup

Mark = torch.cuda.Event | None
"""A point in the work of a CUDA stream; None on the CPU, where work is done when a call returns."""

_MAX_CHUNK_BYTES = 8 * 2**20
"""Two staging buffers of this size stay in a last-level cache, so that memory is read once and not twice."""
_MIN_CHUNK_BYTES = 2**20
_CHUNKS_PER_EXPERT = 4
"""At least so many, so that even within one expert a chunk is read while the one before it is sent."""
_MAX_THREADS = 4
_BIT_PATTERNS = {1: torch.int8, 2: torch.int16, 4: torch.int32}
"""By bytes, the dtype that stands for any other: numpy has no bfloat16, and copies bits."""


def chunk_bytes(slot_bytes: int) -> int:
    """Returns how many bytes of a slot are copied at a time: a multiple of 256."""
    wanted = min(max(-(-slot_bytes // _CHUNKS_PER_EXPERT), _MIN_CHUNK_BYTES), _MAX_CHUNK_BYTES, slot_bytes)
    return -(-wanted // 256) * 256


class Lane(Protocol):
    """Transports chunks. The copier's thread calls `begin`, `copy` and `end`; the engine's thread everything else."""

    chunk_bytes: int
    """The most bytes of one call of `copy`."""

    def fence(self, mark: Mark = None) -> Mark:
        """Returns the point up to which the engine has given work to its stream, which may still read old weights.

        Args:
            mark: One of an earlier fence, which is used again rather than a new one made.
        """
        ...

    def begin(self, fence: Mark) -> None:
        """Makes the copies that follow wait for a fence."""
        ...

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copies one chunk. Both tensors have one shape [rows, columns] and one dtype, and may be strided."""
        ...

    def end(self, mark: Mark = None) -> Mark:
        """Returns the point at which all copies so far have landed. For `mark` see `fence`."""
        ...

    def has_landed(self, mark: Mark) -> bool:
        """Whether the copies before a mark of `end` have landed. Does not wait."""
        ...

    def join(self, mark: Mark) -> None:
        """Orders the work that the engine gives its stream from now on after the mark. Does not wait on CUDA."""
        ...

    def synchronize(self) -> None:
        """Waits until nothing is being computed or copied."""
        ...

    def give_back(self) -> None:
        """Gives the memory of deleted slots back to the device."""
        ...

    def close(self) -> None:
        """Waits for the copies under way and ends its threads. Nothing may be copied afterwards."""
        ...


class HostLane(Lane):
    """Copies to slots in the CPU's memory: each chunk immediately, in the copier's thread."""

    def __init__(self, chunk_bytes: int) -> None:
        self.chunk_bytes = chunk_bytes

    @override
    def fence(self, mark: Mark = None) -> Mark:
        return None  # the engine computes in its own thread: what it has started is done

    @override
    def begin(self, fence: Mark) -> None:
        pass

    @override
    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        np.copyto(_bits(target), _bits(source))

    @override
    def end(self, mark: Mark = None) -> Mark:
        return None

    @override
    def has_landed(self, mark: Mark) -> bool:
        return True

    @override
    def join(self, mark: Mark) -> None:
        pass

    @override
    def synchronize(self) -> None:
        pass

    @override
    def give_back(self) -> None:
        pass

    @override
    def close(self) -> None:
        pass


class CudaLane(Lane):
    """Copies to a GPU: reads a chunk into one of two pinned buffers while the other is sent, on its own stream."""

    def __init__(self, device: torch.device, chunk_bytes: int, num_threads: int | None = None) -> None:
        """Allocates two pinned buffers.

        Args:
            device: A CUDA device.
            chunk_bytes: Bytes of each buffer.
            num_threads: How many threads read into them; None: a fair share of the CPUs.
        """
        self.chunk_bytes = chunk_bytes
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._staging = [_pinned(chunk_bytes) for _ in range(2)]
        # blocking: a wait that spins would take a CPU from the experts
        self._sent = [torch.cuda.Event(blocking=True) for _ in range(2)]  # type: ignore[no-untyped-call]
        self._turn = 0
        self._unturned: torch.Tensor | None = None
        self._reader = _Reader(num_threads or _fair_threads())

    @override
    def fence(self, mark: Mark = None) -> Mark:
        fence: Mark = torch.cuda.current_stream(self._device).record_event(mark)
        return fence

    @override
    def begin(self, fence: Mark) -> None:
        if fence is not None:
            self._stream.wait_event(fence)

    @override
    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        staging, sent = self._staging[self._turn], self._sent[self._turn]
        self._turn = 1 - self._turn
        sent.synchronize()  # waits only if the chunk before the last one is still being sent
        staged = _shaped(staging, source)
        self._reader.copy(_bits(source), _bits(staged))
        with torch.cuda.stream(self._stream):
            if target.is_contiguous():
                target.copy_(staged, non_blocking=True)
            else:  # a transposed layout is sent as it is stored and transposed on the device, whose memory is faster
                self._on_device(staged).copy_(staged, non_blocking=True)
                target.copy_(self._on_device(staged), non_blocking=True)
            sent.record(self._stream)

    @override
    def end(self, mark: Mark = None) -> Mark:
        landed: Mark = self._stream.record_event(mark)
        return landed

    @override
    def has_landed(self, mark: Mark) -> bool:
        return mark is None or bool(mark.query())  # type: ignore[no-untyped-call]

    @override
    def join(self, mark: Mark) -> None:
        if mark is not None:
            torch.cuda.current_stream(self._device).wait_event(mark)

    @override
    def synchronize(self) -> None:
        torch.cuda.synchronize(self._device)

    @override
    def give_back(self) -> None:
        torch.cuda.empty_cache()

    @override
    def close(self) -> None:
        self._reader.close()
        with suppress(torch.AcceleratorError):  # a device that has failed writes nothing any more
            self._stream.synchronize()  # or a copy landed in memory that is another tensor's by then

    def _on_device(self, staged: torch.Tensor) -> torch.Tensor:
        """Returns memory on the device for one chunk as it is stored; only the lane's stream uses it."""
        if self._unturned is None:
            self._unturned = torch.empty(self.chunk_bytes, dtype=torch.uint8, device=self._device)
        return _shaped(self._unturned, staged)


class _Reader:
    """Copies within the CPU's memory with several threads: one thread is slower than a fast link to the device.

    PyTorch's own copy would start a team of OpenMP threads for its caller, which spin between chunks on the CPUs that
    compute experts.
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
    """Returns the lane to a device, for slots of so many bytes."""
    if device.type == "cpu":
        return HostLane(chunk_bytes(slot_bytes))
    return CudaLane(device, chunk_bytes(slot_bytes))


def _fair_threads() -> int:
    return max(1, min(_MAX_THREADS, cgroup.usable_cpus() // 4))


def _pinned(num_bytes: int) -> torch.Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)


def _shaped(memory: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Returns the first bytes of a buffer as a contiguous tensor of another tensor's shape and dtype."""
    return memory[: like.nbytes].view(like.dtype).view(like.shape)


def _bits(tensor: torch.Tensor) -> npt.NDArray[Any]:
    return tensor.view(_BIT_PATTERNS[tensor.itemsize]).numpy()
