"""Copies what the host has made for a step to the device without a wait, several tensors at a time."""

import torch

_BUFFERS = 4
"""Copies that may be under way before the host waits for the oldest: more than a layer makes."""
_MIN_BYTES = 2**16
_ALIGNMENT_BYTES = 16
"""Of each tensor in a copy: what kernels read at a time, at most."""


class Uploads:
    """Copies from pinned buffers in the order of the calls. For one thread and its stream.

    A copy from memory that is not pinned would make the host wait until the device has done everything before it.
    """

    def __init__(self, device: torch.device) -> None:
        """Takes no memory yet. On the CPU it never does, and nothing is copied."""
        self._device = device
        self._buffers: list[_Buffer] = []
        self._turn = 0

    def to_device(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Returns the tensors on the device, in their order, contiguous; those that are there stay as they are.

        What is enqueued on the current stream from now on may read them.
        """
        if self._device.type == "cpu":
            return tensors
        on_host = [tensor for tensor in tensors if _has_to_move(tensor)]
        if not on_host:
            return tuple(tensor.to(self._device) for tensor in tensors)
        starts = [0]
        for tensor in on_host:
            starts.append(starts[-1] + -(-tensor.nbytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES)
        pinned, sent = self._next(starts[-1])
        for tensor, start in zip(on_host, starts, strict=False):
            _part(pinned, start, tensor).copy_(tensor)
        arrived = torch.empty(starts[-1], dtype=torch.uint8, device=self._device)
        arrived.copy_(pinned[: starts[-1]], non_blocking=True)
        sent.record()
        copies = iter([_part(arrived, start, tensor) for tensor, start in zip(on_host, starts, strict=False)])
        return tuple(next(copies) if _has_to_move(tensor) else tensor.to(self._device) for tensor in tensors)

    def _next(self, num_bytes: int) -> "_Buffer":
        """The buffer whose copy began first, large enough and no longer read."""
        if len(self._buffers) < _BUFFERS:
            self._buffers.append(_new_buffer(num_bytes))
            return self._buffers[-1]
        buffer = self._buffers[self._turn]
        buffer[1].synchronize()
        if buffer[0].nbytes < num_bytes:
            buffer = self._buffers[self._turn] = _new_buffer(num_bytes)
        self._turn = (self._turn + 1) % _BUFFERS
        return buffer


_Buffer = tuple[torch.Tensor, torch.cuda.Event]
"""Pinned memory, and the point at which the latest copy from it is complete."""


def _new_buffer(num_bytes: int) -> _Buffer:
    size = max(_MIN_BYTES, 1 << (num_bytes - 1).bit_length())  # powers of two, so that few are made
    return torch.empty(size, dtype=torch.uint8, pin_memory=True), torch.cuda.Event()  # type: ignore[no-untyped-call]


def _has_to_move(tensor: torch.Tensor) -> bool:
    return tensor.is_cpu and tensor.numel() > 0


def _part(memory: torch.Tensor, start: int, like: torch.Tensor) -> torch.Tensor:
    """Some bytes as a contiguous tensor of another's shape and dtype."""
    return memory[start : start + like.nbytes].view(like.dtype).view(like.shape)
