"""Experts that lie one below the other in a matrix for each projection, as DBRX's do: views of every expert's matrices.

All three, w1 (the gate), v1 and w2, are [E x I, H], so that what shapes do not tell (how many experts there are, and of
which size) config.json must. An expert's w2 is used as it lies: its rows are the inputs of the projection. It opens no
file and reads no weight.
"""

import torch

from fiddler.checkpoint.claims import Claim
from fiddler.checkpoint.errors import ConfigError, MissingTensorError, ShapeError
from fiddler.checkpoint.moe_config import MoeConfig
from fiddler.checkpoint.namings import Role
from fiddler.checkpoint.safetensors_index import StoredTensor
from fiddler.checkpoint.views import Expert, WeightView


def is_concatenated(claim: Claim) -> bool:
    """Whether a layer's experts lie so."""
    return "expert" not in claim.naming.pattern.groupindex and "gate" in claim.naming.parts.values()


def concatenated_experts(claim: Claim, config: MoeConfig, dtype: torch.dtype) -> tuple[Expert, ...]:
    """Every expert of one layer.

    Raises:
        ConfigError: config.json does not say how many experts there are or how large.
        MissingTensorError: A tensor is missing.
        ShapeError: A shape does not fit config.json.
    """
    num_experts, inner, hidden = config.num_experts, config.intermediate_size, config.hidden_size
    if num_experts is None or inner is None:
        unsaid = "number of experts" if num_experts is None else "intermediate size of experts"
        raise ConfigError(f"{config.path} says no {unsaid}, which the shapes of those in {claim.prefix!r} do not tell.")
    tensors = {role: _tensor(claim, part, role, config) for part, role in claim.naming.parts.items()}
    shape = (num_experts * inner, hidden)
    for tensor in tensors.values():
        if tensor.shape != shape:
            raise ShapeError(
                f"{tensor.file} holds the tensor {tensor.name!r} of shape {list(tensor.shape)}; with {num_experts} "
                f"experts of {inner} and a hidden size of {hidden} ({config.path}) it must be {list(shape)}."
            )

    def expert(number: int) -> Expert:
        begin = number * inner * hidden
        return Expert(
            gate=_view(tensors["gate"], begin, (inner, hidden), (hidden, 1), dtype),
            up=_view(tensors["up"], begin, (inner, hidden), (hidden, 1), dtype),
            down=_view(tensors["down"], begin, (hidden, inner), (1, hidden), dtype),
        )

    return tuple(expert(number) for number in range(num_experts))


def _tensor(claim: Claim, part: str, role: Role, config: MoeConfig) -> StoredTensor:
    if (None, role) not in claim.tensors:
        raise MissingTensorError(
            f"{config.path.parent} lacks the tensor '{claim.prefix}.{part}', though it holds others of the experts of "
            f"decoder layer {claim.decoder_layer}."
        )
    return claim.tensors[None, role]


def _view(
    tensor: StoredTensor, begin: int, shape: tuple[int, int], strides: tuple[int, int], dtype: torch.dtype
) -> WeightView:
    """A view that begins so many elements into a tensor."""
    return WeightView(tensor.file, tensor.name, tensor.begin + begin * dtype.itemsize, shape, strides, dtype)
