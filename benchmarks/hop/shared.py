"""The shared-memory prototype: both processes map one file, with rows in its first half and answers in its second."""

import mmap
from pathlib import Path

import torch

from benchmarks.hop.messages import HIDDEN_SIZE, NUM_ROWS

_HALF_BYTES = max(NUM_ROWS.values()) * HIDDEN_SIZE * torch.bfloat16.itemsize


def make_file(path: Path) -> None:
    """Makes the file, filled with zeros."""
    with path.open("wb") as file:
        file.truncate(2 * _HALF_BYTES)


class SharedRows:
    """The two halves as tensors, [rows, hidden] each."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            mapped = mmap.mmap(file.fileno(), 0)
        count = _HALF_BYTES // torch.bfloat16.itemsize
        self.rows, self.answers = (
            torch.frombuffer(mapped, dtype=torch.bfloat16, count=count, offset=offset).view(-1, HIDDEN_SIZE)
            for offset in (0, _HALF_BYTES)
        )
