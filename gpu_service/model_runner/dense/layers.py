"""Finds the linear layers of a model that may be kept in codes."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from torch import nn

_FEWEST_OUTPUTS: Final = 16
"""Layers with fewer outputs, such as gates of shared experts, have too few bytes to gain anything."""


@dataclass(slots=True)
class CodableWeight:
    """A weight [outputs, inputs], and every module that multiplies with it."""

    names: list[str] = field(default_factory=list)
    """Of the modules, within the model."""
    linears: list[tuple[nn.Module, str, nn.Linear]] = field(default_factory=list)
    """Parent, name in the parent, module."""
    embeddings: list[tuple[nn.Module, str, nn.Embedding]] = field(default_factory=list)
    """Those that share the weight with a linear layer: the tied embeddings of a head."""


def codable_weights(module: nn.Module, num_experts: Collection[int]) -> list[CodableWeight]:
    """The weights of linear layers that may be kept in codes, each once.

    A router stays as it is: a small error of a logit there chooses another expert, and it has few weights. A layer with
    as many outputs as there are experts is taken for one.

    Args:
        module: The model, with its experts replaced.
        num_experts: The numbers of experts that layers have.

    Returns:
        One for each weight. A weight that a module of another kind uses, too, is left out.
    """
    found: dict[int, CodableWeight] = {}
    others: set[int] = set()
    for name, parent in module.named_modules():
        for key, child in parent.named_children():
            weight = child._parameters.get("weight")
            if weight is None:
                continue
            entry = found.setdefault(id(weight), CodableWeight())
            entry.names.append(f"{name}.{key}".lstrip("."))
            if type(child) is nn.Linear and _is_worth_it(child, num_experts):
                entry.linears.append((parent, key, child))
            elif type(child) is nn.Embedding and child.max_norm is None:
                entry.embeddings.append((parent, key, child))
            else:
                others.add(id(weight))
    return [entry for number, entry in found.items() if entry.linears and number not in others]


def _is_worth_it(linear: nn.Linear, num_experts: Collection[int]) -> bool:
    return linear.out_features >= _FEWEST_OUTPUTS and linear.out_features not in num_experts
