"""Copies experts into huge pages, each part into the memory of the node whose threads compute it.

A page is placed on the node of the thread that first writes it, so that the threads that copy place the copies.
"""

import contextlib
import mmap
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from fiddler import host_memory
from fiddler.errors import UserError
from fiddler.expert_math import ExpertWeights, LayerWeights
from fiddler.kernels.native import Pool, Range, node_ranges
from fiddler.sizes import format_bytes

_MADV_HUGEPAGE = 14  # Linux; the mmap module names it only if it was built with it
_ALIGNMENT = 64

Progress = Callable[[int, int], None]
"""(bytes done, bytes in all)"""


class NotEnoughMemoryError(UserError):
    """The experts do not fit in the memory that is free."""


def copy_layers(layers: Sequence[LayerWeights], pool: Pool | None, progress: Progress) -> list[LayerWeights]:
    """The same layers in memory of their own, row by row whatever their layout was.

    Args:
        layers: What to copy.
        pool: The threads that will compute, and that copy; None leaves copying to PyTorch.
        progress: Called after every expert.

    Raises:
        NotEnoughMemoryError: They do not fit.
    """
    total_bytes = sum(_matrix_bytes(expert) for layer in layers for expert in layer.experts)
    if shortage := host_memory.shortage(total_bytes):
        raise NotEnoughMemoryError(
            f"--weights ram: copies of the experts {shortage}; set --weights mmap, which reads them from the page "
            "cache, or raise the limit"
        )
    done_bytes = 0
    copies = []
    for layer in layers:
        experts = []
        memory = _allocate(sum(_matrix_bytes(expert) for expert in layer.experts))
        offset = 0
        for expert in layer.experts:
            copied, offset = _copy_expert(expert, memory, offset, pool)
            experts.append(copied)
            done_bytes += _matrix_bytes(expert)
            progress(done_bytes, total_bytes)
        copies.append(replace(layer, experts=tuple(experts)))
    return copies


def _copy_expert(
    expert: ExpertWeights, memory: torch.Tensor, offset: int, pool: Pool | None
) -> tuple[ExpertWeights, int]:
    copies: dict[str, torch.Tensor] = {}
    for name, matrix in expert.matrices():
        num_bytes = _padded_bytes(matrix)
        copy = memory[offset : offset + matrix.numel() * matrix.itemsize].view(matrix.dtype).view(matrix.shape)
        offset += num_bytes
        if pool is not None and matrix.is_contiguous():
            pool.copy(_ranges(matrix, copy, pool.num_nodes))
        else:
            copy.copy_(matrix)
        copies[name] = copy
    return expert.with_tensors(copies), offset


def _ranges(matrix: torch.Tensor, copy: torch.Tensor, num_nodes: int) -> list[Range]:
    """Each node's part."""
    row_bytes = matrix.shape[1] * matrix.itemsize
    return [
        Range(
            to=copy.data_ptr() + begin * row_bytes,
            source=matrix.data_ptr() + begin * row_bytes,
            num_bytes=(end - begin) * row_bytes,
            node=node,
        )
        for node, (begin, end) in enumerate(node_ranges(matrix.shape[0], num_nodes))
    ]


def _padded_bytes(matrix: torch.Tensor) -> int:
    return -(-matrix.numel() * matrix.itemsize // _ALIGNMENT) * _ALIGNMENT


def _matrix_bytes(expert: ExpertWeights) -> int:
    return sum(_padded_bytes(matrix) for _, matrix in expert.matrices())


def _allocate(num_bytes: int) -> torch.Tensor:
    """[bytes] of memory that nothing has touched yet, in huge pages if the system has them."""
    try:
        # shared memory, the default, has no huge pages
        memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:  # a limit of the process, or of what the system lets be reserved
        raise NotEnoughMemoryError(
            f"--weights ram: cannot allocate {format_bytes(num_bytes)}: {error.strerror}; set --weights mmap"
        ) from error
    with contextlib.suppress(OSError):  # a kernel without them: the copy is still correct
        memory.madvise(_MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)
