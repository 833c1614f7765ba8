"""What a model's dense part is kept in, and how much memory it takes."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from gpu_service.model_runner.dense.coded import CodedLinear, CodedModule


@dataclass(frozen=True, slots=True)
class DenseSummary:
    """The dense part of a loaded model."""

    format: str
    """What its linear layers are kept in, e.g. "bfloat16", "int8", or both, those of most bytes first."""
    num_bytes: int
    """Of all of its weights, as they are kept; what two modules share counts once."""

    @classmethod
    def of(cls, module: nn.Module) -> "DenseSummary":
        """Adds up a model whose experts are replaced."""
        formats: dict[str, int] = {}
        for name, weight_bytes in _linears(module):
            formats[name] = formats.get(name, 0) + weight_bytes
        tensors = {tensor.data_ptr(): tensor.nbytes for tensor in module.parameters()}
        for child in module.modules():
            if isinstance(child, CodedModule):
                tensors.update((plane.data_ptr(), plane.nbytes) for plane in child.coded.planes().values())
        names = sorted(formats, key=lambda name: -formats[name])
        return cls(", ".join(names), sum(tensors.values()))


def _linears(module: nn.Module) -> Iterator[tuple[str, int]]:
    for child in module.modules():
        if isinstance(child, CodedLinear):
            yield child.kind, child.coded.nbytes
        elif isinstance(child, nn.Linear):
            yield _name(child.weight.dtype), child.weight.nbytes


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
