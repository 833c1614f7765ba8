"""Copies between host and device: pinned memory is read and written when a copy's turn comes, other memory at once."""

from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from tests.support.imitated_cuda.machine import MACHINE
from tests.support.imitated_cuda.memory import uninitialised
from tests.support.imitated_cuda.tensors import DeviceTensor, on_device


def copy_of(
    source: torch.Tensor, *, dtype: torch.dtype | None = None, non_blocking: bool = False, **_: Any
) -> torch.Tensor:
    """The source on the other side, as `to` makes it."""
    with _disable_current_modes():
        if not isinstance(source, DeviceTensor):
            target = on_device(uninitialised(source.size(), source.stride(), dtype or source.dtype))
        else:
            target = torch.empty_strided(source.size(), source.stride(), dtype=dtype or source.dtype)
    return copy_into(target, source, non_blocking=non_blocking)


def copy_into(target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    """Copies between the sides. Only with pinned memory and non_blocking does the host not wait."""
    goes_up = isinstance(target, DeviceTensor)
    there = target.numbers if isinstance(target, DeviceTensor) else target
    here = source.numbers if isinstance(source, DeviceTensor) else source
    direction = "to the device" if goes_up else "to the host"
    MACHINE.counts.copies[direction] += 1
    stream = MACHINE.current_stream()
    is_pinned = MACHINE.memory.is_pinned(here if goes_up else there)
    if not (non_blocking and is_pinned):
        MACHINE.wait(f"a copy {direction} blocks")
    stream.enqueue(lambda: there.copy_(here))
    if not (non_blocking and is_pinned):
        stream.advance_to_end()
    return target
