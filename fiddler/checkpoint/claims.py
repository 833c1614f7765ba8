"""Which of a checkpoint's tensors belong to experts, and to which layer's.

Applies the table of namings. It looks at names only; shapes are checked when `layouts.build` makes views.
"""

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fiddler.checkpoint.errors import (
    FileFormatError,
    MissingTensorError,
    UnknownNamingError,
    UnsupportedDtypeError,
)
from fiddler.checkpoint.formats.stored import AnyStored
from fiddler.checkpoint.moe_config import MoeConfig
from fiddler.checkpoint.namings import Naming, Role

# A tensor of an expert that no row claims is a bias or a quantisation scale. Results would be wrong without it.
_UNCLAIMED_PROJECTION = re.compile(r".*\.experts\.(?:\d+\.)?(?:w[123]|\w*_proj\w*)(?:\.\w+)?")

# Layers that predict further tokens, under the names that families publish them with, and the frequencies of rotary
# embeddings, which are computed. transformers leaves them out of every family.
_UNUSED = re.compile(r"(?:\w+\.)*mtp(?:_\w+)?\.|.*\.rotary_emb\.inv_freq$")

# Towers for images and sound have layers, too, and counts of their own.
_DECODER_LAYER = re.compile(r"(?:(?!vision|visual|audio|encoder)\w+\.)*layers\.(\d{1,9})\.")


@dataclass(slots=True)
class Claim:
    """The tensors of one layer's experts."""

    naming: Naming
    prefix: str
    decoder_layer: int
    tensors: dict[tuple[int | None, Role], AnyStored] = field(default_factory=dict)
    """By expert and role; the expert is None where one tensor holds all experts of the layer."""


def claim_tensors(tensors: Iterable[AnyStored], namings: tuple[Naming, ...], config: MoeConfig) -> list[Claim]:
    """Groups the experts' tensors by layer, sorted by decoder layer. None of the tensors may be one that is unused.

    Raises:
        FileFormatError: A tensor is stored twice.
        UnknownNamingError: A decoder layer has two sets of experts, or experts are named in two ways.
        UnsupportedDtypeError: Experts have quantisation scales, or biases that no naming has.
    """
    claims: dict[str, Claim] = {}
    unclaimed: list[AnyStored] = []
    for tensor in tensors:
        naming, match = next(
            ((naming, match) for naming in namings if (match := naming.pattern.fullmatch(tensor.name))), (None, None)
        )
        if naming is None or match is None:
            unclaimed.append(tensor)
            continue
        groups = match.groupdict()
        prefix = groups["prefix"]
        claim = claims.setdefault(prefix, Claim(naming, prefix, _layer_number(groups, config)))
        if claim.naming is not naming:
            raise UnknownNamingError(
                f"{tensor.file} names the tensor {tensor.name!r} as {naming.description}, but others of its layer as "
                f"{claim.naming.description}."
            )
        expert = None if groups.get("expert") is None else int(groups["expert"])
        key = (expert, naming.parts[groups["part"]])
        other = claim.tensors.setdefault(key, tensor)
        if other is not tensor:
            raise FileFormatError(
                f"{tensor.file} holds the tensor {tensor.name!r}, which {other.file} already holds as {other.name!r}."
            )
    _check_one_claim_per_layer(claims.values())
    _check_one_naming(claims.values())
    if claims:
        _check_unclaimed(unclaimed)
    return sorted(claims.values(), key=lambda claim: claim.decoder_layer)


def is_unused(name: str, config: MoeConfig) -> bool:
    """Whether no model needs a tensor, be it an expert's or dense: transformers leaves it where it is.

    Some families publish layers that predict further tokens, numbered on after the last layer or under names of their
    own; older checkpoints hold the frequencies of rotary embeddings, which are computed.
    """
    match = _DECODER_LAYER.match(name)
    past_the_last = match is not None and int(match[1]) >= (config.num_decoder_layers or sys.maxsize)
    return past_the_last or _UNUSED.match(name) is not None


def missing_tensor(claim: Claim, name: str, config: MoeConfig) -> MissingTensorError:
    """The error for a tensor that a layer's experts need and that the checkpoint does not have."""
    said = (
        "" if config.num_experts is None else f"; {config.path} says {config.num_experts_field} is {config.num_experts}"
    )
    return MissingTensorError(
        f"{config.path.parent} lacks the tensor {name!r}, though it holds others of the experts of decoder layer "
        f"{claim.decoder_layer}{said}."
    )


def tensors_by_role(claim: Claim, config: MoeConfig) -> dict[Role, AnyStored]:
    """The tensors of a layout in which one tensor holds all experts of a layer.

    Raises:
        MissingTensorError: The layer lacks one of them.
    """
    for part, role in claim.naming.parts.items():
        if (None, role) not in claim.tensors:
            raise missing_tensor(claim, f"{claim.prefix}.{part}", config)
    return {role: claim.tensors[None, role] for role in claim.naming.parts.values()}


def _layer_number(groups: Mapping[str, str | None], config: MoeConfig) -> int:
    """The layer in a name's groups; a decoder's layers are counted on from the encoder's."""
    first = config.num_encoder_layers or 0 if groups.get("stack") == "decoder" else 0
    return first + int(groups["layer"] or 0)


def _check_one_claim_per_layer(claims: Iterable[Claim]) -> None:
    seen: dict[int, Claim] = {}
    for claim in claims:
        other = seen.setdefault(claim.decoder_layer, claim)
        if other is not claim:
            tensor = next(iter(claim.tensors.values()))
            raise UnknownNamingError(
                f"{tensor.file} holds the tensor {tensor.name!r}, but decoder layer {claim.decoder_layer} already has "
                f"other experts, under {other.prefix!r}."
            )


def _check_one_naming(claims: Iterable[Claim]) -> None:
    first: Claim | None = None
    for claim in claims:
        first = first or claim
        if claim.naming is not first.naming:
            tensor = next(iter(claim.tensors.values()))
            raise UnknownNamingError(
                f"{tensor.file} names the tensor {tensor.name!r} as {claim.naming.description}, but those of "
                f"{first.prefix!r} as {first.naming.description}: all layers must be named alike."
            )


def _check_unclaimed(tensors: Iterable[AnyStored]) -> None:
    for tensor in tensors:
        if _UNCLAIMED_PROJECTION.fullmatch(tensor.name):
            raise UnsupportedDtypeError(
                f"{tensor.file} holds the tensor {tensor.name!r}: experts with biases or quantisation scales are not "
                "supported."
            )
