"""Where experts are stored: a view of one matrix in a file, an expert of several, a decoder layer of experts."""

from dataclasses import dataclass
from pathlib import Path

import torch

from fiddler.checkpoint.safetensors_index import StoredTensor


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
    def span_bytes(self) -> tuple[int, int]:
        """Its first byte in the file and the one after its last.

        They are more than `num_bytes` apart if other matrices are stored in between.
        """
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        return self.offset_bytes, self.offset_bytes + (last + 1) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Activation:
    """What an expert computes between its projections, by its name in `fiddler.expert_math`."""

    name: str
    alpha: float = 1.702
    """Of clamped_swiglu."""
    limit: float = 7.0
    """Of the clamped ones."""


@dataclass(frozen=True, slots=True)
class Expert:
    """One expert: `down(activation(gate(x)) * up(x))`, or `down(activation(up(x)))` if gate is None.

    If it has a factor, up(x) * factor(x) takes the place of up(x). A bias is a view of shape [1, out_features].
    """

    gate: WeightView | None
    up: WeightView
    down: WeightView
    gate_bias: WeightView | None = None
    up_bias: WeightView | None = None
    down_bias: WeightView | None = None
    factor: WeightView | None = None

    @property
    def views(self) -> dict[str, WeightView]:
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
    def num_experts(self) -> int:
        """Experts in this layer."""
        return len(self.experts)
