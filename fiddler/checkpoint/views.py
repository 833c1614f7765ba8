"""Where experts are stored: a view of one matrix in a file, an expert of several, a decoder layer of experts."""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fiddler.checkpoint.moe_config import Activation
from fiddler.checkpoint.safetensors_index import StoredTensor
from fiddler.coding import Coding

if TYPE_CHECKING:
    from fiddler.checkpoint.formats.repacked import RepackedStored
    from fiddler.checkpoint.formats.stored import CodedStored


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightView:
    """A logical [out_features, in_features] matrix inside a safetensors file."""

    file: Path
    name: str
    """Of the tensor that it is a view of."""
    offset_bytes: int
    """Of element [0, 0], from the start of the file."""
    shape: tuple[int, int]
    strides: tuple[int, int]
    """In elements."""
    dtype: torch.dtype

    @classmethod
    def into(
        cls,
        tensor: StoredTensor,
        *,
        begin: int = 0,
        shape: tuple[int, int],
        strides: tuple[int, int],
        dtype: torch.dtype,
    ) -> "WeightView":
        """A view of part of a tensor.

        Args:
            tensor: The tensor.
            begin: Elements of the tensor before element [0, 0] of the view.
            shape: Of the view.
            strides: In elements.
            dtype: Of the tensor.
        """
        offset_bytes = tensor.begin + begin * dtype.itemsize
        return cls(
            file=tensor.file, name=tensor.name, offset_bytes=offset_bytes, shape=shape, strides=strides, dtype=dtype
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of the matrix itself."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    @property
    def planes(self) -> "tuple[WeightView, ...]":
        """What is read of the files: the matrix."""
        return (self,)

    @property
    def plane_bytes(self) -> tuple[int, ...]:
        """Bytes of each tensor that it takes in memory."""
        return (self.num_bytes,)

    @property
    def span_bytes(self) -> tuple[int, int]:
        """Its first byte in the file and the one after its last.

        They are more than `num_bytes` apart if other matrices are stored in between.
        """
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        return self.offset_bytes, self.offset_bytes + (last + 1) * self.dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class CodedView:
    """A logical [out_features, in_features] matrix inside safetensors files, coded."""

    name: str
    """Of the tensor that it is a view of, as its plain form would be called."""
    coding: Coding
    shape: tuple[int, int]
    codes: WeightView
    """[out_features, bytes of a row] uint8."""
    scales: WeightView
    """[groups of outputs, groups of inputs]."""
    stored: "CodedStored"
    """The tensor: its zero points and its multiplier are read when the view is."""
    matrix: int
    """Which one of the tensor's matrices it is a view of, if that is a stack."""
    groups: slice
    """The rows of that matrix's scales and zero points that belong to it."""
    first_output: int
    """See `fiddler.coding.CodedTensor`."""

    @property
    def file(self) -> Path:
        """The file of the codes."""
        return self.codes.file

    @property
    def planes(self) -> tuple[WeightView, ...]:
        """What is read of the files: codes and scales."""
        return self.codes, self.scales

    @property
    def plane_bytes(self) -> tuple[int, ...]:
        """Bytes of each tensor that it takes in memory; a zero point takes one."""
        planes = self.codes.num_bytes, self.scales.num_bytes
        return planes if self.stored.zeros is None else (*planes, prod(self.scales.shape))

    @property
    def num_bytes(self) -> int:
        """Bytes of codes, scales and zero points."""
        return sum(self.plane_bytes)

    @property
    def span_bytes(self) -> tuple[int, int]:
        """The first byte of the codes in their file and the one after the last."""
        return self.codes.span_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RepackedView:
    """A logical [out_features, in_features] matrix inside safetensors files, coded and repacked when it is read."""

    name: str
    """Of the tensor, as its plain form would be called."""
    coding: Coding
    shape: tuple[int, int]
    stored: "RepackedStored"
    matrix: int = 0
    """Which one of the tensor's matrices it is a view of, if that is a stack."""
    first: int = 0
    """The first output of that matrix that belongs to it."""
    step: int = 1
    """From one output to the next."""

    @property
    def file(self) -> Path:
        """The file of its first plane."""
        return self.stored.file

    @property
    def planes(self) -> tuple[WeightView, ...]:
        """What is read of the files, as rows of bytes."""
        return self.stored.source_views(self.matrix)

    @property
    def plane_bytes(self) -> tuple[int, ...]:
        """Bytes of each tensor that it takes in memory: codes, scales and zero points."""
        outputs, inputs = self.shape
        group = self.coding.group_outputs
        groups = -(-(self.first % group + outputs) // group) * self.coding.num_groups(inputs)
        planes = outputs * self.coding.row_bytes(inputs), groups * self.coding.scale.dtype.itemsize
        return (*planes, groups) if self.coding.has_zeros else planes

    @property
    def num_bytes(self) -> int:
        """Bytes of codes, scales and zero points."""
        return sum(self.plane_bytes)

    @property
    def span_bytes(self) -> tuple[int, int]:
        """The first byte of its first plane in the file and the one after the last."""
        return self.planes[0].span_bytes


MatrixView = WeightView | CodedView | RepackedView


@dataclass(frozen=True, slots=True)
class Expert:
    """One expert: `down(activation(gate(x)) * up(x))`, or `down(activation(up(x)))` if gate is None.

    If it has a factor, up(x) * factor(x) takes the place of up(x). A bias is a view of shape [1, out_features].
    """

    gate: MatrixView | None
    up: MatrixView
    down: MatrixView
    gate_bias: MatrixView | None = None
    up_bias: MatrixView | None = None
    down_bias: MatrixView | None = None
    factor: MatrixView | None = None

    @property
    def views(self) -> dict[str, MatrixView]:
        """The views that this expert has, by the names above, those of `fiddler.expert_math.ExpertWeights`."""
        views = {name: getattr(self, name) for name in self.__slots__}
        return {name: view for name, view in views.items() if view is not None}

    @property
    def num_bytes(self) -> int:
        """Bytes of all views, biases included."""
        return sum(view.num_bytes for view in self.views.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointLayer:
    """The experts of one decoder layer."""

    name: str
    """Their common prefix in the checkpoint, for example model.layers.3.mlp.experts."""
    decoder_layer: int
    experts: tuple[Expert, ...]
    hidden_size: int
    intermediate_size: int
    activation: Activation

    @property
    def weight_format(self) -> str:
        """How its matrices are stored: a dtype or the name of a coding."""
        up = self.experts[0].up
        return str(up.dtype).removeprefix("torch.") if isinstance(up, WeightView) else up.coding.name

    @property
    def num_experts(self) -> int:
        """Experts in this layer."""
        return len(self.experts)
