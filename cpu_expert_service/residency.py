"""Estimates how many bytes of the experts' weights are in this process's memory, from a sample of their pages.

Linux says of each page of a process's memory whether it is present (Documentation/admin-guide/mm/pagemap.rst, bit 63).
Asking for all of them takes long if there are many millions.
"""

import bisect
import mmap
import os
from collections.abc import Sequence
from itertools import accumulate

import torch

from fiddler.expert_math import LayerWeights

_SAMPLED_PAGES = 2048  # a standard error of about one per cent, and some milliseconds
_ENTRY_BYTES = 8
_PRESENT = 1 << 63


class Residency:
    """A sample of the pages of some weights."""

    def __init__(self, layers: Sequence[LayerWeights]) -> None:
        """Chooses the pages and reads none.

        Args:
            layers: The weights, at the addresses that they are computed from.
        """
        tensors = [tensor for layer in layers for expert in layer.experts for _, tensor in expert.tensors()]
        ends = list(accumulate(tensor.nbytes for tensor in tensors))
        self.total_bytes = ends[-1]
        self._pages = []
        for number in range(_SAMPLED_PAGES):
            offset = self.total_bytes * (2 * number + 1) // (2 * _SAMPLED_PAGES)
            index = bisect.bisect_right(ends, offset)
            begin = ends[index - 1] if index else 0
            self._pages.append(_address(tensors[index], offset - begin) // mmap.PAGESIZE)

    def resident_bytes(self) -> float:
        """An estimate of the bytes in memory.

        Raises:
            OSError: The kernel does not say which pages are present.
        """
        file = os.open("/proc/self/pagemap", os.O_RDONLY)
        try:
            entries = (os.pread(file, _ENTRY_BYTES, page * _ENTRY_BYTES) for page in self._pages)
            num_present = sum(bool(int.from_bytes(entry, "little") & _PRESENT) for entry in entries)
        finally:
            os.close(file)
        return self.total_bytes * num_present / len(self._pages)


def _address(tensor: torch.Tensor, offset: int) -> int:
    """The address of byte `offset` of a tensor, counted in the order of its elements, whatever its strides."""
    element, byte = divmod(offset, tensor.itemsize)
    distance = 0
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.stride()), strict=True):
        element, index = divmod(element, size)
        distance += index * stride
    return tensor.data_ptr() + distance * tensor.itemsize + byte
