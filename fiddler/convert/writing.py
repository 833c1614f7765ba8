"""Computes the tensors of one file of the result and writes them, and reads them back."""

import errno
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

import torch

from fiddler.checkpoint import Checkpoint
from fiddler.checkpoint.formats import CodedStored, RepackedStored
from fiddler.checkpoint.reading import read_coded, read_tensor
from fiddler.checkpoint.safetensors_index import StoredTensor
from fiddler.coding import CodedTensor, dequantize
from fiddler.convert.errors import ConversionError, SpaceError
from fiddler.convert.plan import Item, Shard
from fiddler.convert.quantize import empty, quantize_rows
from fiddler.convert.recipe import CodedFormat

_COPY_BYTES: Final = 16 * 2**20
_WEIGHTS_OF_A_TASK: Final = 2**20
_ROWS_OF_A_TASK: Final = 64
"""A multiple of this: of a transposed matrix, a cache line holds so many rows at most."""
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class _Started:
    """An item whose tensors are being computed."""

    item: Item
    planes: tuple[torch.Tensor, ...]
    """Of its targets, in their order, once all tasks are done."""
    tasks: tuple["Future[None]", ...]


def write_shard(
    path: Path, shard: Shard, checkpoint: Checkpoint, pool: ThreadPoolExecutor, progress: Callable[[int], None]
) -> None:
    """Writes one file whole, or leaves none: it is read back and has its name only then.

    Args:
        path: Of the file.
        shard: What is in it.
        checkpoint: The source.
        pool: Computes; one matrix is computed while another one is written.
        progress: Is called with the bytes of the source that were read since its last call. What it raises ends this.

    Raises:
        ConversionError: A weight is infinite or not a number, or what is read back is not what was written.
        SpaceError: The disk is full.
        OSError: The file cannot be written.
    """
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        with full_disk_reported(path.parent), unfinished.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, shard.num_bytes)  # so that a full disk is noticed before computing
            checksums = _write(file.fileno(), shard, checkpoint, pool, progress)
            file.flush()
            os.fsync(file.fileno())
        _read_back(unfinished, shard, checksums, pool)
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)


class full_disk_reported:  # noqa: N801 - used as contextlib's functions are
    """Turns the system's refusal of more bytes into a SpaceError."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and error.errno in _FULL:
            raise SpaceError(
                f"{self._directory}: {error.strerror}; what is written so far is kept, and the same command continues "
                "with it once there is room."
            ) from error


def _write(
    file: int, shard: Shard, checkpoint: Checkpoint, pool: ThreadPoolExecutor, progress: Callable[[int], None]
) -> dict[str, int]:
    """Writes everything; returns the checksum of each tensor."""
    _write_at(file, shard.header, 0)
    checksums: dict[str, int] = {}
    started: deque[_Started] = deque()

    def finish() -> None:
        computed = started.popleft()
        try:
            for task in computed.tasks:
                task.result()
        except ValueError as error:
            source = computed.item.source
            raise ConversionError(f"{source.file} holds the tensor {source.name!r}: {error}.") from None
        for target, plane in zip(computed.item.targets, computed.planes, strict=True):
            data = _bytes_of(plane)
            checksums[target.name] = zlib.crc32(data)
            _write_at(file, data, shard.offsets[target.name])
        progress(computed.item.source_bytes)

    for item, following in zip_longest(shard.items, shard.items[1:]):
        if following is not None:
            _read_ahead(following)
        if item.coded_as is None and item.dtype is None:
            name = item.targets[0].name
            assert isinstance(item.source, StoredTensor)
            checksums[name] = _copy(item.source, file, shard.offsets[name], progress)
            continue
        started.append(_start(item, checkpoint, pool))
        if len(started) > 1:
            finish()
    while started:
        finish()
    return checksums


def _read_ahead(item: Item) -> None:
    """Lets the kernel read a matrix into the page cache while another one is computed. Others are read in one go."""
    if isinstance(item.source, StoredTensor | CodedStored | RepackedStored):
        return
    for plane in item.source.planes:
        begin, end = plane.span_bytes
        with plane.file.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), begin, end - begin, os.POSIX_FADV_WILLNEED)


def _start(item: Item, checkpoint: Checkpoint, pool: ThreadPoolExecutor) -> _Started:
    if item.coded_as is None:
        assert item.dtype is not None
        return _Started(item, (_plain(item, checkpoint, item.dtype),), ())
    weights = _matrix(item, checkpoint)
    coded = empty(item.coded_as, (weights.shape[0], weights.shape[1]))
    rows = -(-max(1, _WEIGHTS_OF_A_TASK // weights.shape[1]) // _ROWS_OF_A_TASK) * _ROWS_OF_A_TASK
    tasks = tuple(
        pool.submit(_quantize_part, weights, item.coded_as, coded, slice(begin, begin + rows))
        for begin in range(0, len(weights), rows)
    )
    codes = coded.codes if item.coded_as == "int8" else coded.codes.view(torch.int32)
    planes = (codes, coded.scales, torch.tensor(item.shape, dtype=torch.int64))[: len(item.targets)]
    return _Started(item, planes, tasks)


def _quantize_part(weights: torch.Tensor, kind: CodedFormat, coded: CodedTensor, part: slice) -> None:
    quantize_rows(weights[part], kind, coded.codes[part], coded.scales[part])


def _plain(item: Item, checkpoint: Checkpoint, dtype: torch.dtype) -> torch.Tensor:
    """A tensor that is written in a dtype: decoded, rounded, or a bias out of several."""
    match item.source:
        case CodedStored() | RepackedStored() as coded:
            return dequantize(read_coded(coded), dtype)
        case StoredTensor() as stored:
            return read_tensor(stored).to(dtype)
        case view:
            return checkpoint.tensor(view).reshape(item.shape).to(dtype)


def _matrix(item: Item, checkpoint: Checkpoint) -> torch.Tensor:
    """The weights [outputs, inputs] of a matrix that is coded: plain ones of an expert in the file's own pages."""
    match item.source:
        case CodedStored() | RepackedStored() as coded:
            return dequantize(read_coded(coded))
        case StoredTensor() as stored:
            return read_tensor(stored)
        case view:
            matrix = checkpoint.matrix(view)
            return dequantize(matrix) if isinstance(matrix, CodedTensor) else matrix


def _copy(stored: StoredTensor, file: int, offset: int, progress: Callable[[int], None]) -> int:
    """Copies a tensor's bytes; returns their checksum."""
    checksum = 0
    with stored.file.open("rb", buffering=0) as source:
        for data in _pieces(source.fileno(), stored.begin, stored.num_bytes):
            checksum = zlib.crc32(data, checksum)
            _write_at(file, data, offset)
            offset += len(data)
            progress(len(data))
    return checksum


def _pieces(file: int, begin: int, num_bytes: int) -> Iterator[bytes]:
    """Some bytes of a file, piece by piece.

    Raises:
        ConversionError: The file is shorter.
    """
    end = begin + num_bytes
    while begin < end:
        data = os.pread(file, min(_COPY_BYTES, end - begin), begin)
        if not data:
            raise ConversionError(f"{os.readlink(f'/proc/self/fd/{file}')} ends at byte {begin}: it was changed.")
        yield data
        begin += len(data)


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    array: Any = tensor.contiguous().view(-1).view(torch.uint8).numpy()
    return memoryview(array)


def _write_at(file: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written


def _read_back(path: Path, shard: Shard, checksums: dict[str, int], pool: ThreadPoolExecutor) -> None:
    """Reads a file again.

    Raises:
        ConversionError: A tensor is not what was computed.
    """
    with path.open("rb", buffering=0) as file:

        def checksum(begin: int, num_bytes: int) -> int:
            result = 0
            for data in _pieces(file.fileno(), begin, num_bytes):
                result = zlib.crc32(data, result)
            return result

        targets = list(shard.targets)
        found = pool.map(lambda target: checksum(shard.offsets[target.name], target.num_bytes), targets)
        for target, value in zip(targets, found, strict=True):
            if value != checksums[target.name]:
                raise ConversionError(
                    f"{path}: the tensor {target.name!r} is not what was written to it: the disk may be damaged."
                )
