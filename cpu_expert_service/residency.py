"""How much of the experts' weights lies in this process's memory, estimated from a sample of their pages.

The kernel tells of each page of a process's own memory whether it is there (Linux, Documentation/admin-guide/mm/
pagemap.rst, bit 63). Asking for all of them takes long where there are many millions.
"""

import bisect
import mmap
import os
from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch

from fiddler.expert_math import LayerWeights

_SAMPLED_PAGES = 2048  # a standard error of about one per cent, and some milliseconds
_ENTRY_BYTES = 8
_PRESENT = 1 << 63


class Residency:
    """A sample of the pages of some weights."""

    def __init__(self, layers: Sequence[LayerWeights]) -> None:
        """Chooses the pages; reads none.

        Args:
            layers: The weights, where they lie now.
        """
        matrices = list(_matrices(layers))
        ends = list(accumulate(matrix.numel() * matrix.itemsize for matrix in matrices))
        self.total_bytes = ends[-1]
        self._pages = []
        for number in range(_SAMPLED_PAGES):
            offset = self.total_bytes * (2 * number + 1) // (2 * _SAMPLED_PAGES)
            index = bisect.bisect_right(ends, offset)
            begin = ends[index - 1] if index else 0
            self._pages.append((matrices[index].data_ptr() + offset - begin) // mmap.PAGESIZE)

    def resident_bytes(self) -> float:
        """An estimate.

        Raises:
            OSError: The kernel does not tell.
        """
        file = os.open("/proc/self/pagemap", os.O_RDONLY)
        try:
            entries = (os.pread(file, _ENTRY_BYTES, page * _ENTRY_BYTES) for page in self._pages)
            num_present = sum(bool(int.from_bytes(entry, "little") & _PRESENT) for entry in entries)
        finally:
            os.close(file)
        return self.total_bytes * num_present / len(self._pages)


def _matrices(layers: Sequence[LayerWeights]) -> Iterator[torch.Tensor]:
    for layer in layers:
        for expert in layer.experts:
            yield from (matrix for matrix in (expert.gate, expert.up, expert.down) if matrix is not None)
