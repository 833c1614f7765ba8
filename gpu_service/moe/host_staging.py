"""Copies what a MoE layer's plan depends on to the CPU, with one wait."""

import torch


class HostStaging:
    """Copies a layer's tensors to the CPU with one wait.

    On CUDA they are copied into pinned memory without waiting for each, and the stream is waited for once: the only
    device-to-host synchronisation of a MoE layer. On the CPU nothing is copied.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pinned: dict[str, torch.Tensor] = {}

    def to_host(self, **tensors: torch.Tensor) -> list[torch.Tensor]:
        """Returns the tensors on the CPU, in their order, valid until the next call."""
        if self._device.type == "cpu":
            return list(tensors.values())
        copies = [self._buffer(name, tensor).copy_(tensor, non_blocking=True) for name, tensor in tensors.items()]
        torch.cuda.current_stream(self._device).synchronize()
        return copies

    def _buffer(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Returns pinned memory of the tensor's shape, kept between calls because pinning is slow."""
        buffer = self._pinned.get(name)
        if buffer is None or buffer.numel() < tensor.numel() or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.numel(), dtype=tensor.dtype, pin_memory=True)
            self._pinned[name] = buffer
        return buffer[: tensor.numel()].view(tensor.shape)
