"""What a conversion writes: every tensor with its source, and its place in the files. It reads no weight."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Final

import torch

from fiddler.checkpoint import Checkpoint
from fiddler.checkpoint.formats import AnyStored
from fiddler.checkpoint.safetensors_index import SINGLE_FILE, StoredTensor
from fiddler.checkpoint.views import MatrixView, WeightView
from fiddler.convert.dense import is_linear
from fiddler.convert.errors import ConversionError
from fiddler.convert.expert_names import named_views
from fiddler.convert.recipe import GROUP_INPUTS, SHARD_BYTES, CodedFormat, ExpertFormat, Recipe, linear_format

_ALIGNMENT: Final = 64
_NAMES: Final = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_ITEMSIZES: Final = {"I64": 8, "F64": 8, "C64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2}
_SHAPE_BYTES: Final = 16

Source = AnyStored | MatrixView
"""A tensor of the checkpoint that belongs to no expert, or a matrix of an expert."""


@dataclass(frozen=True, slots=True)
class Target:
    """One tensor of the result."""

    name: str
    dtype: str
    """As the safetensors format names it."""
    shape: tuple[int, ...]
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class Item:
    """One tensor or matrix of the source, and what is written of it."""

    name: str
    """Of its plain form in the result."""
    source: Source
    shape: tuple[int, ...]
    coded_as: CodedFormat | None
    """None: it is copied, or decoded to `dtype`."""
    dtype: torch.dtype | None
    """What a copy is decoded or rounded to; None leaves its bytes as they are."""
    is_expert: bool

    @cached_property
    def targets(self) -> tuple[Target, ...]:
        """The tensors that are written: of a coded matrix codes, scales and, of int4, the shape."""
        if self.coded_as is None:
            return (self._plain_target(),)
        outputs, inputs = self.shape
        stem = self.name.removesuffix("weight")
        scales = (outputs, inputs // GROUP_INPUTS if self.coded_as == "int4" else 1)
        scale_target = Target(f"{stem}weight_scale", "BF16", scales, prod(scales) * 2)
        if self.coded_as == "int8":
            return Target(self.name, "I8", self.shape, outputs * inputs), scale_target
        packed = Target(f"{stem}weight_packed", "I32", (outputs, inputs // 8), outputs * inputs // 2)
        return packed, scale_target, Target(f"{stem}weight_shape", "I64", (2,), _SHAPE_BYTES)

    @property
    def source_bytes(self) -> int:
        """Bytes of the source."""
        return self.source.num_bytes

    @property
    def num_bytes(self) -> int:
        """Bytes that are written."""
        return sum(target.num_bytes for target in self.targets)

    def _plain_target(self) -> Target:
        if self.dtype is None:
            assert isinstance(self.source, StoredTensor)
            return Target(self.name, self.source.dtype, self.shape, self.source.num_bytes)
        return Target(self.name, _NAMES[self.dtype], self.shape, prod(self.shape) * self.dtype.itemsize)


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of the result."""

    name: str
    items: tuple[Item, ...]
    header: bytes
    """All that precedes the tensors."""
    offsets: dict[str, int]
    """Where each tensor begins, from the start of the file."""
    num_bytes: int
    """Of the file."""

    @property
    def targets(self) -> Iterator[Target]:
        """The tensors of the file."""
        return (target for item in self.items for target in item.targets)

    @property
    def source_bytes(self) -> int:
        """Bytes of the sources of its tensors."""
        return sum(item.source_bytes for item in self.items)


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is written."""

    recipe: Recipe
    shards: tuple[Shard, ...]
    dtype: torch.dtype
    """What the model is computed in unless a flag says otherwise."""

    @property
    def items(self) -> Iterator[Item]:
        """Every tensor or matrix of the source."""
        return (item for shard in self.shards for item in shard.items)

    @property
    def ungrouped(self) -> list[str]:
        """The dense matrices that are int8 although int4 is asked for: groups do not divide their inputs."""
        if self.recipe.dense != "int4":
            return []
        return [item.name for item in self.items if item.coded_as == "int8" and not item.is_expert]

    @property
    def num_bytes(self) -> int:
        """Bytes of all files of weights."""
        return sum(shard.num_bytes for shard in self.shards)

    @property
    def source_bytes(self) -> int:
        """Bytes that are read."""
        return sum(shard.source_bytes for shard in self.shards)

    @property
    def memory_bytes(self) -> int:
        """The most memory that a conversion takes in addition to libraries, about: two results and a decoded matrix."""
        items = [item for item in self.items if item.coded_as or item.dtype]
        return max((2 * item.num_bytes + prod(item.shape) * 4 for item in items), default=0)


def make_plan(checkpoint: Checkpoint, recipe: Recipe, shard_bytes: int = SHARD_BYTES) -> Plan:
    """What converting a checkpoint writes.

    Args:
        checkpoint: The source.
        recipe: What is made of it.
        shard_bytes: About the size of a file.

    Raises:
        ConversionError: The family's experts cannot be written, or a matrix has inputs that groups do not divide.
    """
    dtype = torch.bfloat16 if recipe.dense == "bfloat16" else checkpoint.expert_dtype
    items = [*_dense_items(checkpoint, recipe, dtype), *_expert_items(checkpoint, recipe.experts)]
    for item in items:
        _check_groups(item)
    groups = _grouped(items, shard_bytes)
    names = (
        [SINGLE_FILE]
        if len(groups) == 1
        else [f"model-{number + 1:05}-of-{len(groups):05}.safetensors" for number in range(len(groups))]
    )
    return Plan(recipe, tuple(_shard(name, group) for name, group in zip(names, groups, strict=True)), dtype)


def _dense_items(checkpoint: Checkpoint, recipe: Recipe, dtype: torch.dtype) -> Iterator[Item]:
    # what no model here has a place for, other engines may use; of coded ones, only with the source's own format
    others = () if checkpoint.is_coded else checkpoint.unused_tensors
    coded_in = recipe.codes_dense_in
    for stored in (*checkpoint.dense_tensors, *others):
        is_plain = isinstance(stored, StoredTensor)
        linear = is_linear(stored, checkpoint.config)
        is_float = not is_plain or stored.dtype in _NAMES.values()
        rounded = recipe.dense == "bfloat16" and linear and stored.dtype != "BF16"
        yield Item(
            name=stored.name,
            source=stored,
            shape=stored.shape,
            coded_as=linear_format(coded_in, stored.shape[1]) if coded_in and linear and is_float else None,
            dtype=dtype if not is_plain or (rounded and is_float) else None,
            is_expert=False,
        )


def _expert_items(checkpoint: Checkpoint, kind: ExpertFormat) -> Iterator[Item]:
    for layer in checkpoint.layers:
        for named in named_views(layer):
            view = named.view
            if named.is_bias:
                assert isinstance(view, WeightView)
                shape: tuple[int, ...] = (view.shape[1],)
                yield Item(name=named.name, source=view, shape=shape, coded_as=None, dtype=view.dtype, is_expert=True)
            else:
                yield Item(name=named.name, source=view, shape=view.shape, coded_as=kind, dtype=None, is_expert=True)


def _check_groups(item: Item) -> None:
    if item.coded_as == "int4" and item.shape[1] % GROUP_INPUTS:
        raise ConversionError(
            f"{item.source.file} holds the tensor {item.source.name!r} with {item.shape[1]} inputs, which groups of "
            f"{GROUP_INPUTS} do not divide, so that it cannot be int4: choose int8, which has no groups."
        )


def _grouped(items: Sequence[Item], shard_bytes: int) -> list[list[Item]]:
    groups: list[list[Item]] = [[]]
    filled = 0
    for item in items:
        if groups[-1] and filled + item.num_bytes > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(item)
        filled += item.num_bytes
    return groups


def _shard(name: str, items: Sequence[Item]) -> Shard:
    """Lays out a file: the wider a dtype, the earlier, so that every tensor begins at a multiple of its size.

    The codes of the first coded matrix begin at a multiple of a cache line, which sizes of matrices usually are, too.
    """
    targets = sorted(
        (target for item in items for target in item.targets), key=lambda target: -_ITEMSIZES.get(target.dtype, 1)
    )
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begins: dict[str, int] = {}
    position = 0
    for target in targets:
        begins[target.name] = position
        end = position + target.num_bytes
        entries[target.name] = {"dtype": target.dtype, "shape": target.shape, "data_offsets": [position, end]}
        position = end
    codes = {item.targets[0].name for item in items if item.coded_as}
    first = next((begins[target.name] for target in targets if target.name in codes), 0)
    text = json.dumps(entries, separators=(",", ":")).encode()
    # the format allows spaces after the header
    text += b" " * (-(8 + len(text) + first) % _ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    offsets = {target: len(header) + begin for target, begin in begins.items()}
    return Shard(name, tuple(items), header, offsets, len(header) + position)
