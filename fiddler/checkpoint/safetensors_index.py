"""Which tensors a checkpoint directory holds, and at which bytes of which file.

Reads the headers of safetensors files itself, because the safetensors library returns tensors but not byte ranges. It
knows nothing about experts and never reads a tensor.
"""

import json
import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import torch

from fiddler.checkpoint.errors import DirectoryError, FileFormatError, MissingTensorError
from fiddler.checkpoint.json_file import absence, problem_of, read_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000
"""The format's own limit. A longer header is an attack or a damaged file."""

_MAX_DIMENSIONS = 16
_MAX_SIZE = 2**63
_MAX_DIGITS = 20
_MAX_NAME = 4096
_LENGTH_BYTES = 8
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip


TORCH_DTYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""What tensors of a dtype are in PyTorch; others are read byte by byte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """One tensor of a safetensors file."""

    file: Path
    name: str
    dtype: str
    """As the format names it, for example BF16."""
    shape: tuple[int, ...]
    begin: int
    """Bytes from the start of the file."""
    end: int
    """Bytes from the start of the file; the first one after the tensor."""

    @property
    def num_bytes(self) -> int:
        """Bytes it takes in the file."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One safetensors file: the bytes of its header, and its tensors in the order in which they are stored."""

    path: Path
    header: bytes
    tensors: tuple[StoredTensor, ...]
    """Those that are the checkpoint's."""
    has_others: bool = False
    """Whether the file holds tensors that the index does not place in it."""


def read_files(directory: Path, is_unused: Callable[[str], bool] = lambda name: False) -> tuple[StoredFile, ...]:
    """Every safetensors file of the checkpoint, sorted by name.

    A single `model.safetensors` wins over an index, as it does in transformers. Other safetensors files in the
    directory are not the checkpoint's and stay unread. The index decides which file a tensor is read from: what else
    a file holds, such as a stale copy of a tensor that another file replaces, is not the checkpoint's.

    Args:
        directory: The checkpoint's.
        is_unused: Whether no model needs a tensor of that name: the index may list it though its file lacks it, or is
            missing.

    Raises:
        DirectoryError: There is no safetensors file, or one that the index names is missing.
        FileFormatError: The index or a header is damaged.
        MissingTensorError: The index lists a tensor that its shard lacks.
    """
    if (directory / SINGLE_FILE).is_file():
        return (read_file(directory / SINGLE_FILE),)
    index = directory / INDEX_FILE
    if not index.is_file():
        raise DirectoryError(_no_weights(directory))
    names_in: dict[str, set[str]] = defaultdict(set)
    for name, file_name in _read_index(index).items():
        names_in[file_name].add(name)
    files = []
    for file_name in sorted(names_in):
        path, names = directory / file_name, names_in[file_name]
        if not os.path.isfile(path):  # Path.is_file raises if the name is too long
            if all(is_unused(name) for name in names):
                continue
            raise DirectoryError(f"{path} {absence(path)}, though {index} names it.")
        files.append(_only(read_file(path), names, index, is_unused))
    return tuple(files)


def _only(file: StoredFile, names: set[str], index: Path, is_unused: Callable[[str], bool]) -> StoredFile:
    """The file with the tensors that the index places in it."""
    tensors = tuple(tensor for tensor in file.tensors if tensor.name in names)
    lacking = names.difference(tensor.name for tensor in tensors)
    for name in sorted(lacking):
        if not is_unused(name):
            raise MissingTensorError(f"{file.path} lacks the tensor {name!r} that {index} says it holds.")
    return StoredFile(file.path, file.header, tensors, has_others=len(tensors) < len(file.tensors))


def read_file(path: Path) -> StoredFile:
    """The header of one safetensors file, checked against the file's length.

    Raises:
        DirectoryError: The file cannot be read.
        FileFormatError: The header breaks the format, or the file is shorter or longer than the header says.
    """
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(_read_exactly(file.read(_LENGTH_BYTES), _LENGTH_BYTES, path), "little")
            if header_bytes > MAX_HEADER_BYTES:
                raise FileFormatError(
                    f"{path} claims a header of {header_bytes} bytes, more than the {MAX_HEADER_BYTES} that the "
                    "safetensors format allows."
                )
            header = _read_exactly(file.read(header_bytes), header_bytes, path)
    except OSError as error:
        raise DirectoryError(f"{path} cannot be read: {error.strerror}.") from error
    data_begin = _LENGTH_BYTES + header_bytes
    entries = _parse_header(header, path)
    tensors = [_parse_tensor(name, entry, path=path, data_begin=data_begin) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    _check_cover(tensors, path=path, data_begin=data_begin, file_bytes=file_bytes)
    return StoredFile(path, header, tuple(tensors))


def _read_exactly(data: bytes, num_bytes: int, path: Path) -> bytes:
    if len(data) < num_bytes:
        raise FileFormatError(f"{path} is truncated: it ends within its header.")
    return data


def _parse_header(header: bytes, path: Path) -> dict[str, Any]:
    try:
        entries = json.loads(header.decode(), object_pairs_hook=_unique_keys, parse_int=_bounded_int)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} has a damaged header: {problem_of(error)}.") from error
    if not isinstance(entries, dict):
        raise FileFormatError(f"{path} has a damaged header: it is not a JSON object.")
    entries.pop("__metadata__", None)
    return entries


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a key occurs twice")
    return entries


def _bounded_int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def _parse_tensor(name: str, entry: Any, *, path: Path, data_begin: int) -> StoredTensor:
    """One header entry, whose byte count must match its shape and dtype."""
    if len(name) > _MAX_NAME:
        raise FileFormatError(f"{path} has a damaged header: the name of a tensor has {len(name)} characters.")
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            pass
        case _:
            raise FileFormatError(f"{path} has a damaged header: the entry of the tensor {name!r} is malformed.")
    # type(), since isinstance accepts JSON's true as an int
    if not {type(number) for number in (*shape, begin, end)} == {int} or min(*shape, begin, end) < 0:
        raise FileFormatError(f"{path} has a damaged header: the tensor {name!r} has a size that is no whole number.")
    if len(shape) > _MAX_DIMENSIONS or max(shape, default=0) >= _MAX_SIZE:
        raise FileFormatError(
            f"{path} has a damaged header: the tensor {name!r} has {len(shape)} dimensions, and the largest is "
            f"{max(shape)}; there may be {_MAX_DIMENSIONS}, each below 2^63."
        )
    if dtype not in _BITS:
        raise FileFormatError(f"{path} stores the tensor {name!r} in the unknown dtype {dtype[:64]!r}.")
    needed_bits = prod(shape) * _BITS[dtype]
    if (end - begin) * 8 != needed_bits:
        raise FileFormatError(
            f"{path} gives the tensor {name!r} {end - begin} bytes, but {dtype} of shape {shape} takes "
            f"{needed_bits // 8}."
        )
    return StoredTensor(
        file=path, name=name, dtype=dtype, shape=tuple(shape), begin=data_begin + begin, end=data_begin + end
    )


def _check_cover(tensors: list[StoredTensor], *, path: Path, data_begin: int, file_bytes: int) -> None:
    """The format allows no gaps, no overlaps and nothing after the last tensor."""
    position = data_begin
    for tensor in tensors:
        if tensor.end > file_bytes:
            raise FileFormatError(
                f"{path} is truncated: the tensor {tensor.name!r} ends at byte {tensor.end} of a file of {file_bytes}."
            )
        if tensor.begin != position:
            flaw = "overlaps the tensor before it" if tensor.begin < position else "leaves a gap before it"
            raise FileFormatError(f"{path} has a damaged header: the tensor {tensor.name!r} {flaw}.")
        position = tensor.end
    if position != file_bytes:
        raise FileFormatError(f"{path} has {file_bytes - position} bytes after its last tensor.")


def _read_index(index: Path) -> dict[str, str]:
    """The file name of each tensor. Names with a folder in them are refused: they could lead out of the directory."""
    content = read_json(index, FileFormatError, MAX_HEADER_BYTES)
    file_of = content.get("weight_map")
    if not isinstance(file_of, dict) or not file_of:
        raise FileFormatError(f"{index} has no weight_map.")
    for name, file_name in file_of.items():
        if not isinstance(file_name, str) or "\0" in file_name or Path(file_name).name != file_name:
            raise FileFormatError(
                f"{index} places the tensor {name!r} in {file_name!r}, which is not a file name in the same directory."
            )
    return file_of


def _no_weights(directory: Path) -> str:
    for name in (SINGLE_FILE, INDEX_FILE):
        if os.path.lexists(path := directory / name):
            return f"{path} {absence(path)}."
    others = sorted(path.name for path in directory.glob("*.safetensors"))
    if others:
        return f"{directory} holds {others[0]} but neither {SINGLE_FILE} nor {INDEX_FILE}."
    return f"{directory} holds no safetensors file: neither {SINGLE_FILE} nor {INDEX_FILE}."
