"""Maps one file of weights into memory: views of its matrices, and reading its pages in."""

import errno
import mmap
import warnings
from pathlib import Path

import torch

from fiddler.checkpoint.errors import FileFormatError
from fiddler.checkpoint.views import WeightView

_MADV_POPULATE_READ = 22  # Linux 5.14; the mmap module has no name for it


class MappedFile:
    """A file mapped into memory, read-only and shared with every other process that maps it."""

    def __init__(self, path: Path) -> None:
        """Maps the file."""
        self._path = path
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._flat_tensors: dict[tuple[torch.dtype, int], torch.Tensor] = {}

    def view(self, view: WeightView) -> torch.Tensor:
        """The matrix itself, in the file's own pages."""
        offset, phase = divmod(view.offset_bytes, view.dtype.itemsize)
        return self._flat(view.dtype, phase).as_strided(view.shape, view.strides, offset)

    def _flat(self, dtype: torch.dtype, phase: int) -> torch.Tensor:
        """The whole file from byte `phase` on as one tensor.

        A tensor may start at any byte, but a torch offset counts elements: so there is one flat tensor for each
        remainder of the offset. Safetensors pads its headers, so that the remainder is mostly 0.
        """
        key = (dtype, phase)
        if key not in self._flat_tensors:
            count = (len(self._map) - phase) // dtype.itemsize
            with warnings.catch_warnings():
                # torch warns that it has no read-only tensors; the mapping is read-only, and writing would be a bug
                warnings.filterwarnings("ignore", message="The given buffer is not writable")
                self._flat_tensors[key] = torch.frombuffer(self._map, dtype=dtype, count=count, offset=phase)
        return self._flat_tensors[key]

    def read(self, begin: int, end: int) -> bytes:
        """A copy of some bytes, for tensors that are small."""
        return self._map[begin:end]

    def populate(self, begin: int, end: int) -> None:
        """Reads those bytes into the page cache and the page tables.

        Raises:
            FileFormatError: They cannot be read.
        """
        begin -= begin % mmap.PAGESIZE
        try:
            self._map.madvise(_MADV_POPULATE_READ, begin, end - begin)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise FileFormatError(f"{self._path} cannot be read into memory: {error.strerror}.") from error
            self._touch(begin, end)

    def _touch(self, begin: int, end: int) -> None:
        """Reads a byte of every page, for kernels before 5.14."""
        self._map[begin : end : mmap.PAGESIZE]
