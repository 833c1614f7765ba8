"""Opens a Hugging Face checkpoint directory and gives zero-copy views of its experts' matrices.

The weights are memory-mapped and shared through the page cache; reading one copies nothing.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from math import prod
from pathlib import Path
from typing import Any

import torch

from fiddler.checkpoint.claims import claim_tensors, is_unused
from fiddler.checkpoint.errors import (
    ConfigError,
    DirectoryError,
)
from fiddler.checkpoint.expert_dtype import expert_dtype
from fiddler.checkpoint.file_states import FileStates
from fiddler.checkpoint.first_look import first_look, no_experts
from fiddler.checkpoint.formats import (
    AnyStored,
    check_plain,
    check_scales,
    detect,
    group_planes,
    parts_of,
)
from fiddler.checkpoint.hub_cache import name_of, snapshot_of
from fiddler.checkpoint.json_file import absence, read_json
from fiddler.checkpoint.layouts.build import build_layer
from fiddler.checkpoint.mapped_file import MappedFile
from fiddler.checkpoint.moe_config import MoeConfig, check_depth, parse_config
from fiddler.checkpoint.namings import NAMINGS
from fiddler.checkpoint.reading import zero_biases
from fiddler.checkpoint.safetensors_index import TORCH_DTYPES, StoredFile, StoredTensor, read_files
from fiddler.checkpoint.views import CheckpointLayer, CodedView, MatrixView, RepackedView, WeightView
from fiddler.coding import CodedTensor
from fiddler.hub.names import locate

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
    """As stored, and of coded ones also as their plain forms would be called."""
    expert_dtype: torch.dtype
    """That of the experts' weights; of coded ones the dtype in which config.json says the model computes."""
    weight_format: str
    """How the experts' weights are stored, for people: "bfloat16", "fp8 128x128"."""
    is_coded: bool
    """Whether config.json names a format of 8 or 4 bits."""
    is_repacked: bool
    """Whether experts are copies in memory of their own, repacked from how they are stored."""
    dense_tensors: tuple[AnyStored, ...]
    """The tensors that belong to no expert."""
    unused_tensors: tuple[StoredTensor, ...]
    """Tensors for which a model should have no place, such as layers that predict further tokens."""
    dense_bytes: int
    """Their bytes."""
    num_dense_weights: int
    expert_bytes: int
    """Bytes of the tensors that belong to experts."""

    def __init__(
        self, directory: Path, *, config: dict[str, Any], moe: MoeConfig, files: tuple[StoredFile, ...]
    ) -> None:
        """Finds the experts among the tensors; `open` calls it."""
        weight_format = detect(config, moe.path)
        stored = [tensor for file in files for tensor in file.tensors]
        check_depth(config, moe.path, len(stored))
        unused = {tensor.name: tensor for tensor in stored if is_unused(tensor.name, moe)}
        tensors = group_planes((each for each in stored if each.name not in unused), weight_format, moe.path)
        if weight_format is not None and weight_format.adds_biases:
            unused |= zero_biases(tensors)
            tensors = [tensor for tensor in tensors if tensor.name not in unused]
        claims = claim_tensors(tensors, NAMINGS, moe)
        if not claims:
            if weight_format is None:
                check_plain((tensor for tensor in tensors if isinstance(tensor, StoredTensor)), moe.path)
            raise no_experts(config, moe, [tensor.name for tensor in tensors])
        experts = [tensor for claim in claims for tensor in claim.tensors.values()]
        names = {tensor.name for tensor in experts}
        dense = [tensor for tensor in tensors if tensor.name not in names]
        if weight_format is None:
            check_plain((tensor for tensor in dense if isinstance(tensor, StoredTensor)), moe.path)
        self.directory = directory
        self.config = config
        self.model_type = moe.model_type
        self.layers = tuple(build_layer(claim, moe) for claim in claims)
        self.files = tuple(file.path for file in files)
        self.is_coded = weight_format is not None
        self.is_repacked = self.repacked_bytes > 0
        self.dense_tensors = tuple(dense)
        self.unused_tensors = tuple(unused.values())
        self._moe = moe
        self._unused_names = frozenset(unused)
        self._expert_parts = tuple(part for tensor in experts for part in parts_of(tensor))
        self.expert_tensor_names = frozenset(names | {part.name for part in self._expert_parts})
        self.weight_format = ", ".join(dict.fromkeys(layer.weight_format for layer in self.layers))
        self.expert_dtype = expert_dtype(self.layers, config)
        self.expert_bytes = sum(tensor.num_bytes for tensor in experts)
        self.dense_bytes = sum(tensor.num_bytes for tensor in dense)
        self.num_dense_weights = sum(prod(tensor.shape) for tensor in dense)
        self._stored_files = files
        self.states = FileStates(self.files)  # watched by the services
        self._mapped = {path: MappedFile(path) for path in sorted({part.file for part in self._expert_parts})}

    @classmethod
    def open(cls, directory: Path) -> "Checkpoint":
        """Reads config.json and every safetensors header, and maps the files that hold experts.

        Args:
            directory: The checkpoint; or a repository of the Hugging Face cache, of which a snapshot is opened; or a
                model's name, as `fiddler.hub.names.locate` finds it.

        Raises:
            CheckpointError: The directory is not a complete checkpoint of a model with experts in a known naming.
        """
        directory = Path(directory)
        with _reported_as_unreadable(directory):
            directory = locate(directory)
            first_look(directory)
            directory = snapshot_of(directory)
            config_path = directory / "config.json"
            if not config_path.is_file():
                raise DirectoryError(f"{config_path} {absence(config_path)}.")
            config = read_json(config_path, ConfigError)
            moe = parse_config(config, config_path)
            files = read_files(directory, partial(is_unused, config=moe))
            return cls(directory, config=config, moe=moe, files=files)

    @property
    def name(self) -> str:
        """The model's name for people: the directory's, or ORG/NAME in the Hugging Face cache."""
        return name_of(self.directory)

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
                if file.has_others:  # which of its tensors count is what the index says
                    digest.update("\0".join(tensor.name for tensor in file.tensors).encode())
                with file.path.open("rb", buffering=0) as handle:
                    for tensor in file.tensors:
                        for begin in (tensor.begin, tensor.begin + tensor.num_bytes // 2):
                            length = min(_SAMPLE_BYTES, tensor.end - begin)
                            digest.update(os.pread(handle.fileno(), length, begin))
        return digest.hexdigest()

    def is_unused(self, name: str) -> bool:
        """Whether a tensor of that name is one that no model needs, wherever it is stored."""
        return name in self._unused_names or is_unused(name, self._moe)

    def tensor(self, view: MatrixView) -> torch.Tensor:
        """A plain matrix [out_features, in_features], strided, in the file's own pages; writing to it crashes.

        It takes no memory of its own. It stays valid after `close`.

        Raises:
            TypeError: The matrix is coded.
        """
        if not isinstance(view, WeightView):
            raise TypeError(f"{view.name} is coded")
        return self._mapped[view.file].view(view)

    def matrix(self, view: MatrixView) -> torch.Tensor | CodedTensor:
        """A matrix as it is stored, in the files' own pages but for zero points; see `tensor`."""
        if isinstance(view, WeightView):
            return self.tensor(view)
        if isinstance(view, RepackedView):
            return view.stored.read(view, self._plane)
        stored = view.stored
        zeros = None
        if stored.zeros is not None:
            zeros = stored.unpack_zeros(self._bytes(stored.zeros, view.matrix, stored.num_matrices), view.groups)
        return CodedTensor(
            view.coding,
            view.shape,
            codes=self.tensor(view.codes),
            scales=self.tensor(view.scales),
            zeros=zeros,
            multiplier=1.0 if stored.multiplier is None else stored.factor(self._bytes(stored.multiplier), view.matrix),
            first_output=view.first_output,
        )

    def _plane(self, stored: StoredTensor) -> torch.Tensor:
        """A plane of a repacked tensor, in the file's own pages; bytes if PyTorch lacks its dtype."""
        dtype, length = TORCH_DTYPES.get(stored.dtype, torch.uint8), prod(stored.shape)
        view = WeightView.into(stored, shape=(1, length), strides=(length, 1), dtype=dtype)
        return self._mapped[stored.file].view(view).view(stored.shape)

    def _bytes(self, stored: StoredTensor, matrix: int = 0, num_matrices: int = 1) -> torch.Tensor:
        """A copy of a small tensor's bytes, or of those of one of the matrices in it."""
        length = stored.num_bytes // num_matrices
        begin = stored.begin + matrix * length
        return torch.frombuffer(bytearray(self._mapped[stored.file].read(begin, begin + length)), dtype=torch.uint8)

    @property
    def has_coded_dense(self) -> bool:
        """Whether tensors that belong to no expert are coded, too."""
        return any(not isinstance(tensor, StoredTensor) for tensor in self.dense_tensors)

    @property
    def repacked_bytes(self) -> int:
        """Bytes of memory that repacked experts take, in addition to the page cache; 0 if none is repacked."""
        experts = (expert for layer in self.layers for expert in layer.experts)
        views = (view for expert in experts for view in expert.views.values())
        return sum(view.num_bytes for view in views if isinstance(view, RepackedView))

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

    def check_scales(self) -> None:
        """Reads the experts' scales, which are few next to their codes. Repacked ones are checked when they are read.

        Raises:
            UnsupportedDtypeError: One is infinite or not a number.
        """
        for view in (view for layer in self.layers for expert in layer.experts for view in expert.views.values()):
            if isinstance(view, CodedView):
                matrix = self.matrix(view)
                assert isinstance(matrix, CodedTensor)
                check_scales(matrix, f"{view.scales.file}: {view.scales.name!r}")

    def close(self) -> None:
        """Closes the files; memory is unmapped once the last tensor taken from them is freed."""
        self._mapped.clear()
        self.states.close()

    def _expert_ranges(self) -> dict[Path, list[tuple[int, int]]]:
        """The (begin, end) bytes of experts in each file, ascending, adjacent ones joined."""
        ranges: dict[Path, list[tuple[int, int]]] = defaultdict(list)
        for part in sorted(self._expert_parts, key=lambda part: (part.file, part.begin)):
            spans = ranges[part.file]
            if spans and spans[-1][1] == part.begin:
                spans[-1] = (spans[-1][0], part.end)
            else:
                spans.append((part.begin, part.end))
        return ranges


@contextmanager
def _reported_as_unreadable(directory: Path) -> Iterator[None]:
    """Turns the system's refusal to read a file into a DirectoryError."""
    try:
        yield
    except OSError as error:
        raise DirectoryError(f"{error.filename or directory} cannot be read: {error.strerror}.") from error
