"""Opens a Hugging Face checkpoint directory and gives zero-copy views of its experts' matrices.

The weights are memory-mapped and shared through the page cache; reading one copies nothing.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from fiddler.checkpoint import weight_format
from fiddler.checkpoint.claims import claim_tensors, is_unused
from fiddler.checkpoint.errors import (
    CheckpointError,
    ConfigError,
    DirectoryError,
    UnknownNamingError,
    UnsupportedDtypeError,
)
from fiddler.checkpoint.json_file import read_json
from fiddler.checkpoint.layouts.build import build_layer
from fiddler.checkpoint.mapped_file import MappedFile
from fiddler.checkpoint.moe_config import MoeConfig, mentions_experts, parse_config
from fiddler.checkpoint.namings import NAMINGS
from fiddler.checkpoint.safetensors_index import StoredFile, read_files
from fiddler.checkpoint.views import CheckpointLayer, WeightView

_PREFAULT_CHUNK_BYTES = 64 << 20
_SAMPLE_BYTES = 64


class Checkpoint:
    """An open checkpoint. Views may be taken from any thread, but not after `close`."""

    directory: Path
    config: dict[str, Any]
    """The content of config.json."""
    model_type: str
    layers: tuple[CheckpointLayer, ...]
    """The layers that have experts, in the order of the model."""
    files: tuple[Path, ...]
    """The safetensors files."""
    expert_tensor_names: frozenset[str]
    expert_dtype: torch.dtype
    dense_bytes: int
    """Bytes of the tensors that belong to no expert."""
    expert_bytes: int
    """Bytes of the tensors that belong to experts."""

    def __init__(
        self, directory: Path, *, config: dict[str, Any], moe: MoeConfig, files: tuple[StoredFile, ...]
    ) -> None:
        """Finds the experts among the tensors; `open` calls it."""
        tensors = [tensor for file in files for tensor in file.tensors]
        claims = claim_tensors(tensors, NAMINGS, moe)
        if not claims:
            weight_format.check_names(tensors)
            raise _no_experts(config, moe, [tensor.name for tensor in tensors])
        names = {tensor.name for claim in claims for tensor in claim.tensors.values()}
        self.directory = directory
        self.config = config
        self.model_type = moe.model_type
        self.layers = tuple(build_layer(claim, moe) for claim in claims)
        self.files = tuple(file.path for file in files)
        self.expert_tensor_names = frozenset(names)
        self.expert_dtype = _one_dtype(self.layers)
        self.expert_bytes = sum(tensor.num_bytes for tensor in tensors if tensor.name in names)
        self.dense_bytes = sum(t.num_bytes for t in tensors if t.name not in names and not is_unused(t.name, moe))
        self._stored_files = files
        expert_files = {t.file for claim in claims for t in claim.tensors.values()}
        self._mapped = {path: MappedFile(path, self.expert_dtype) for path in sorted(expert_files)}

    @classmethod
    def open(cls, directory: Path) -> "Checkpoint":
        """Reads config.json and every safetensors header, and maps the files that hold experts.

        Raises:
            CheckpointError: The directory is not a complete checkpoint of a model with experts in a known naming.
        """
        directory = Path(directory)
        with _reported_as_unreadable(directory):
            if not directory.is_dir():
                raise DirectoryError(f"{directory} {'is not a directory' if directory.exists() else 'does not exist'}.")
            config_path = directory / "config.json"
            if not config_path.is_file():
                raise DirectoryError(f"{config_path} is missing.")
            config = read_json(config_path, ConfigError)
            weight_format.check_config(config, config_path)
            moe, files = parse_config(config, config_path), read_files(directory)
            return cls(directory, config=config, moe=moe, files=files)

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 over config.json, all headers with their file names, and two samples of every tensor.

        It shows whether two processes use the same weights without reading them all: the samples are 64 bytes from the
        start and from the middle.

        Raises:
            DirectoryError: A file cannot be read any more.
        """
        with _reported_as_unreadable(self.directory):
            digest = hashlib.sha256((self.directory / "config.json").read_bytes())
            for file in sorted(self._stored_files, key=lambda file: file.path.name):
                digest.update(b"\0" + os.fsencode(file.path.name) + b"\0" + file.header)
                with file.path.open("rb", buffering=0) as handle:
                    for tensor in file.tensors:
                        for begin in (tensor.begin, tensor.begin + tensor.num_bytes // 2):
                            length = min(_SAMPLE_BYTES, tensor.end - begin)
                            digest.update(os.pread(handle.fileno(), length, begin))
        return digest.hexdigest()

    def tensor(self, view: WeightView) -> torch.Tensor:
        """A matrix [out_features, in_features], strided, in the file's own pages; writing to it crashes the process.

        It takes no memory of its own. It stays valid after `close`.
        """
        return self._mapped[view.file].view(view)

    def prefault(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Reads all experts into the page cache and into this process's page tables.

        `progress(done_bytes, total_bytes)` is called after every 64 MiB. Pages are not locked: the kernel drops them
        again when memory is short.

        Raises:
            FileFormatError: A file cannot be read.
        """
        ranges = [(path, begin, end) for path, spans in self._expert_ranges().items() for begin, end in spans]
        total_bytes = sum(end - begin for _, begin, end in ranges)
        done_bytes = 0
        for path, begin, end in ranges:
            for chunk_begin in range(begin, end, _PREFAULT_CHUNK_BYTES):
                chunk_end = min(chunk_begin + _PREFAULT_CHUNK_BYTES, end)
                self._mapped[path].populate(chunk_begin, chunk_end)
                done_bytes += chunk_end - chunk_begin
                if progress is not None:
                    progress(done_bytes, total_bytes)

    def close(self) -> None:
        """Closes the files; memory is unmapped once the last tensor taken from them is freed."""
        self._mapped.clear()

    def _expert_ranges(self) -> dict[Path, list[tuple[int, int]]]:
        """The (begin, end) bytes of experts in each file, ascending, adjacent ones joined."""
        ranges: dict[Path, list[tuple[int, int]]] = defaultdict(list)
        for file in self._stored_files:
            for tensor in file.tensors:
                if tensor.name not in self.expert_tensor_names:
                    continue
                spans = ranges[file.path]
                if spans and spans[-1][1] == tensor.begin:
                    spans[-1] = (spans[-1][0], tensor.end)
                else:
                    spans.append((tensor.begin, tensor.end))
        return ranges


@contextmanager
def _reported_as_unreadable(directory: Path) -> Iterator[None]:
    """Turns the system's refusal to read a file into a DirectoryError."""
    try:
        yield
    except OSError as error:
        raise DirectoryError(f"{error.filename or directory} cannot be read: {error.strerror}.") from error


def _one_dtype(layers: tuple[CheckpointLayer, ...]) -> torch.dtype:
    first = layers[0].experts[0].down
    for layer in layers:
        other = layer.experts[0].down
        if other.dtype != first.dtype:
            raise UnsupportedDtypeError(
                f"{other.file} stores the expert tensor {other.name!r} as {other.dtype}, but {first.name!r} is "
                f"{first.dtype}: all experts must have one dtype."
            )
    return first.dtype


def _no_experts(config: dict[str, Any], moe: MoeConfig, tensor_names: list[str]) -> CheckpointError:
    suspects = sorted(name for name in tensor_names if "expert" in name)
    if not suspects and not mentions_experts(config):
        return ConfigError(
            f"{moe.path} describes no experts, and no tensor has the name of one: {moe.model_type} is dense."
        )
    found = ", ".join(suspects[:3]) or "no tensor with 'expert' in its name"
    known = "; ".join(naming.description for naming in NAMINGS)
    return UnknownNamingError(
        f"{moe.path} describes a {moe.model_type} model whose experts have unknown names: found {found}; known names "
        f"are {known}."
    )
