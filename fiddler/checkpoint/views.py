"""The words for where experts lie: a view of one matrix in a file, an expert of three, a decoder layer of experts."""

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True, slots=True)
class WeightView:
    """A logical [out_features, in_features] matrix inside a safetensors file.

    `offset_bytes` is that of element [0, 0] from the start of the file; `strides` are in elements.
    """

    file: Path
    name: str
    offset_bytes: int
    shape: tuple[int, int]
    strides: tuple[int, int]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes of the matrix itself."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    @property
    def span_bytes(self) -> tuple[int, int]:
        """First byte in the file and one past the last; more than `num_bytes` apart where others lie in between."""
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
    """One expert: `down(activation(gate(x)) * up(x))`, or `down(activation(up(x)))` where gate is None.

    Where there is a factor, up(x) * factor(x) takes the place of up(x). A bias is a view of shape [1, out_features].
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


@dataclass(frozen=True, slots=True)
class CheckpointLayer:
    """The experts of one decoder layer; `name` is their prefix in the checkpoint, `model.layers.3.mlp.experts`."""

    name: str
    decoder_layer: int
    experts: tuple[Expert, ...]
    hidden_size: int
    intermediate_size: int
    activation: Activation

    @property
    def num_experts(self) -> int:
        """Experts in this layer."""
        return len(self.experts)
