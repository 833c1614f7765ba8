"""Under which names the matrices of experts are written: a tensor for each, as compressed-tensors needs them.

Experts that have tensors of their own keep the names of these. Those of fused, concatenated or interleaved layers get
names that `fiddler.checkpoint.namings` has a row for, which are also those that the tools of that format give them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from fiddler.checkpoint import NAMINGS, CheckpointLayer, Expert
from fiddler.checkpoint.namings import Naming, Role
from fiddler.checkpoint.views import MatrixView
from fiddler.convert.errors import ConversionError

_SPELLINGS: Final[tuple[dict[str, str], ...]] = (
    {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"},
    {"gate": "w1", "up": "w3", "down": "w2"},
    {"gate": "w1", "up": "v1", "down": "w2"},
)
"""What families call the three projections of an expert, the usual one first."""
_BIAS: Final = "_bias"


@dataclass(frozen=True, slots=True)
class NamedView:
    """A matrix or a bias of an expert, and the name of its plain form in the result."""

    name: str
    view: MatrixView
    is_bias: bool


def named_views(layer: CheckpointLayer) -> Iterator[NamedView]:
    """Every matrix and bias of a layer's experts, expert by expert.

    Raises:
        ConversionError: The layer's experts have no form with a tensor for each matrix.
    """
    naming, prefix = _naming_of(layer.experts[0])
    for number, expert in enumerate(layer.experts):
        for role, view in expert.views.items():
            is_bias = role.endswith(_BIAS)
            name = view.name if naming.layout == "separate" else _separate_name(prefix, number, role, view)
            yield NamedView(name, view, is_bias)


def _naming_of(expert: Expert) -> tuple[Naming, str]:
    name = expert.down.name
    for naming in NAMINGS:
        if match := naming.pattern.fullmatch(name):
            return naming, match["prefix"]
    raise AssertionError(f"{name} was claimed by no naming")


def _separate_name(prefix: str, number: int, role: str, view: MatrixView) -> str:
    """The name that a matrix of a fused layer has as a tensor of its own."""
    matrix, is_bias = role.removesuffix(_BIAS), role.endswith(_BIAS)
    for block in (prefix, f"{prefix}.experts"):
        for spelling in _SPELLINGS:
            if matrix in spelling:
                name = f"{block}.{number}.{spelling[matrix]}.{'bias' if is_bias else 'weight'}"
                if _is_read_as(name, block, role):
                    return name
    raise ConversionError(
        f"{view.file} holds the tensor {view.name!r}: experts of this family are not converted, since a checkpoint "
        "with a tensor for each of their matrices could not be read."
    )


def _is_read_as(name: str, prefix: str, role: str) -> bool:
    """Whether the table of namings takes a tensor of that name for this part of an expert of this layer."""
    roles: list[Role] = []
    for naming in NAMINGS:
        match = naming.pattern.fullmatch(name)
        if match and naming.layout == "separate" and match["prefix"] == prefix:
            roles.append(naming.parts[match["part"]])
    return roles == [role]
