"""From tensor names and shapes to experts: which bytes are which expert's gate, up and down matrix.

The table of known names is in `fiddler.checkpoint`. This module applies it; it opens no file and reads no weight.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from fiddler.checkpoint_errors import MissingTensorError, ShapeError, UnknownNamingError, UnsupportedDtypeError
from fiddler.moe_config import MoeConfig
from fiddler.safetensors_index import StoredTensor

Role = Literal["gate", "up", "down", "gate_up"]

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}

# A projection below a layer's experts that no row claims: a bias or a quantisation scale. To ignore it would be wrong.
_UNCLAIMED_PROJECTION = re.compile(r".*\.experts\.(?:\d+\.)?(?:w[123]|\w*_proj\w*)(?:\.\w+)?")


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
class Expert:
    """One expert: `down(activation(gate(x)) * up(x))`, or `down(activation(up(x)))` where gate is None."""

    gate: WeightView | None
    up: WeightView
    down: WeightView


@dataclass(frozen=True, slots=True)
class MoeLayer:
    """The experts of one decoder layer; `name` is their prefix in the checkpoint, `model.layers.3.mlp.experts`."""

    name: str
    decoder_layer: int
    experts: tuple[Expert, ...]
    hidden_size: int
    intermediate_size: int
    activation: str

    @property
    def num_experts(self) -> int:
        """Experts in this layer."""
        return len(self.experts)


@dataclass(frozen=True, slots=True)
class Naming:
    """One way to name experts: a row of the table.

    `pattern` matches a whole tensor name and has the groups `prefix` (the layer's experts), `layer`, `part` and, where
    every expert has tensors of its own, `expert`. Without it one tensor holds all experts of the layer. `parts` says
    what each part is. `interleaved_in` lists the model types whose fused gate and up alternate, gate first.
    """

    description: str
    pattern: re.Pattern[str]
    parts: Mapping[str, Role]
    interleaved_in: frozenset[str] = frozenset()


@dataclass(slots=True)
class Claim:
    """The tensors of one layer's experts, by expert (None: all of them in one tensor) and role."""

    naming: Naming
    prefix: str
    decoder_layer: int
    tensors: dict[tuple[int | None, Role], StoredTensor] = field(default_factory=dict)


def claim_tensors(tensors: Iterable[StoredTensor], namings: tuple[Naming, ...], config: MoeConfig) -> list[Claim]:
    """Groups the experts' tensors by layer, sorted by decoder layer.

    Raises:
        UnknownNamingError: a decoder layer has two sets of experts, or one layer mixes two namings.
        UnsupportedDtypeError: experts are quantised or have biases.
    """
    claims: dict[str, Claim] = {}
    unclaimed: list[StoredTensor] = []
    for tensor in tensors:
        if is_unused(tensor.name, config):
            continue
        naming, match = next(
            ((naming, match) for naming in namings if (match := naming.pattern.fullmatch(tensor.name))), (None, None)
        )
        if naming is None or match is None:
            unclaimed.append(tensor)
            continue
        groups = match.groupdict()
        prefix = groups["prefix"]
        claim = claims.setdefault(prefix, Claim(naming, prefix, int(groups["layer"])))
        if claim.naming is not naming:
            raise UnknownNamingError(
                f"{tensor.file} names the tensor {tensor.name!r} as {naming.description}, but others of its layer as "
                f"{claim.naming.description}."
            )
        expert = None if groups.get("expert") is None else int(groups["expert"])
        claim.tensors[expert, naming.parts[groups["part"]]] = tensor
    _check_one_claim_per_layer(claims.values())
    if claims:
        _check_unclaimed(unclaimed)
    return sorted(claims.values(), key=lambda claim: claim.decoder_layer)


def is_unused(name: str, config: MoeConfig) -> bool:
    """Whether a tensor belongs to the multi-token-prediction layers some families publish after the last layer."""
    if name.startswith("mtp."):
        return True
    match = re.search(r"(?:^|\.)layers\.(\d+)\.", name) if config.num_decoder_layers is not None else None
    return match is not None and int(match[1]) >= (config.num_decoder_layers or 0)


def build_layer(claim: Claim, config: MoeConfig) -> MoeLayer:
    """One layer's experts, complete and of agreeing shapes and dtype.

    Raises:
        MissingTensorError: an expert or one of its tensors is missing, or there are more than config.json says.
        ShapeError: a shape does not fit the others or config.json.
        UnsupportedDtypeError: a dtype that nothing here computes, or two dtypes in one layer.
    """
    dtype = _common_dtype(claim)
    fused = "expert" not in claim.naming.pattern.groupindex
    experts = _fused_experts(claim, config, dtype) if fused else _separate_experts(claim, config, dtype)
    down = experts[0].down
    hidden_size, intermediate_size = down.shape
    if config.intermediate_size not in (None, intermediate_size):
        raise ShapeError(
            f"{down.file} has an expert intermediate size of {intermediate_size} in the tensor {down.name!r}, but "
            f"{config.path} says {config.intermediate_size}."
        )
    return MoeLayer(claim.prefix, claim.decoder_layer, experts, hidden_size, intermediate_size, config.activation)


def _check_one_claim_per_layer(claims: Iterable[Claim]) -> None:
    seen: dict[int, Claim] = {}
    for claim in claims:
        other = seen.setdefault(claim.decoder_layer, claim)
        if other is not claim:
            tensor = next(iter(claim.tensors.values()))
            raise UnknownNamingError(
                f"{tensor.file} holds the tensor {tensor.name!r}, but decoder layer {claim.decoder_layer} has other "
                f"experts already, under {other.prefix!r}."
            )


def _check_unclaimed(tensors: Iterable[StoredTensor]) -> None:
    for tensor in tensors:
        if _UNCLAIMED_PROJECTION.fullmatch(tensor.name):
            raise UnsupportedDtypeError(
                f"{tensor.file} holds the tensor {tensor.name!r}: experts with biases or quantisation scales are not "
                "supported."
            )


def _common_dtype(claim: Claim) -> torch.dtype:
    first = next(iter(claim.tensors.values()))
    for tensor in claim.tensors.values():
        if tensor.dtype not in DTYPES:
            raise UnsupportedDtypeError(
                f"{tensor.file} stores the expert tensor {tensor.name!r} as {tensor.dtype}; supported are "
                f"{', '.join(DTYPES)}."
            )
        if tensor.dtype != first.dtype:
            raise UnsupportedDtypeError(
                f"{tensor.file} stores the expert tensor {tensor.name!r} as {tensor.dtype}, but {first.name!r} as "
                f"{first.dtype}: all experts must have one dtype."
            )
    return DTYPES[first.dtype]


def _separate_experts(claim: Claim, config: MoeConfig, dtype: torch.dtype) -> tuple[Expert, ...]:
    """Experts with a tensor per projection: gate and up [I, H], down [H, I]."""
    ids: dict[int, StoredTensor] = {expert: t for (expert, _), t in claim.tensors.items() if expert is not None}
    num_experts = config.num_experts or max(ids) + 1
    if max(ids) >= num_experts:
        tensor = ids[max(ids)]
        raise MissingTensorError(
            f"{tensor.file} holds the tensor {tensor.name!r}, but {config.path} says there are {num_experts} experts."
        )
    example = claim.tensors.get((min(ids), "up")) or next(iter(claim.tensors.values()))
    sizes = example.shape if example is claim.tensors.get((min(ids), "up")) else example.shape[::-1]
    intermediate_size = sizes[0] if sizes else 0
    return tuple(_separate_expert(claim, expert, intermediate_size, config, dtype) for expert in range(num_experts))


def _separate_expert(
    claim: Claim, expert: int, intermediate_size: int, config: MoeConfig, dtype: torch.dtype
) -> Expert:
    views: dict[Role, WeightView] = {}
    for part, role in claim.naming.parts.items():
        tensor = claim.tensors.get((expert, role))
        if tensor is None:
            raise _missing(claim, f"{claim.prefix}.{expert}.{part}.weight", config)
        wide, narrow = (intermediate_size, config.hidden_size)
        shape = (narrow, wide) if role == "down" else (wide, narrow)
        if tensor.shape != shape:
            raise ShapeError(
                f"{tensor.file} holds the tensor {tensor.name!r} of shape {list(tensor.shape)}; with a hidden size of "
                f"{config.hidden_size} ({config.path}) and the layer's other experts it must be {list(shape)}."
            )
        views[role] = WeightView(tensor.file, tensor.name, tensor.begin, shape, (shape[1], 1), dtype)
    return Expert(views.get("gate"), views["up"], views["down"])


def _missing(claim: Claim, name: str, config: MoeConfig) -> MissingTensorError:
    directory = config.path.parent
    return MissingTensorError(
        f"{directory} lacks the tensor {name!r}, though it holds others of decoder layer {claim.decoder_layer}'s experts."
    )
