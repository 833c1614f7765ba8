"""Experts with a tensor per expert and projection."""

import torch

from fiddler.checkpoint.claims import Claim, _missing
from fiddler.checkpoint.errors import MissingTensorError, ShapeError
from fiddler.checkpoint.moe_config import MoeConfig
from fiddler.checkpoint.namings import Role
from fiddler.checkpoint.safetensors_index import StoredTensor
from fiddler.checkpoint.views import Expert, WeightView


def _separate_experts(claim: Claim, config: MoeConfig, dtype: torch.dtype) -> tuple[Expert, ...]:
    """Experts with a tensor per projection: gate and up [I, H], down [H, I], and biases [I] and [H] in some."""
    ids: dict[int, StoredTensor] = {expert: t for (expert, _), t in claim.tensors.items() if expert is not None}
    num_experts = config.num_experts or max(ids) + 1
    if max(ids) >= num_experts:
        tensor = ids[max(ids)]
        raise MissingTensorError(
            f"{tensor.file} holds the tensor {tensor.name!r}, but {config.path} says there are {num_experts} experts."
        )
    intermediate_size = _intermediate_size(claim)
    return tuple(_separate_expert(claim, expert, intermediate_size, config, dtype) for expert in range(num_experts))


def _separate_expert(
    claim: Claim, expert: int, intermediate_size: int, config: MoeConfig, dtype: torch.dtype
) -> Expert:
    views: dict[Role, WeightView] = {}
    for part, role in claim.naming.parts.items():
        tensor = claim.tensors.get((expert, role))
        if tensor is None:
            number, suffix = claim.naming.expert_name.format(expert), claim.naming.suffix
            raise _missing(claim, f"{claim.prefix}.{number}.{part}{suffix}", config)
        wide, narrow = (intermediate_size, config.hidden_size)
        shape = (narrow, wide) if role.startswith("down") else (wide, narrow)
        due = shape[:1] if role.endswith("_bias") else shape
        if tensor.shape != due:
            raise ShapeError(
                f"{tensor.file} holds the tensor {tensor.name!r} of shape {list(tensor.shape)}; with a hidden size of "
                f"{config.hidden_size} ({config.path}) and the layer's other experts it must be {list(due)}."
            )
        shape = (1, shape[0]) if role.endswith("_bias") else shape
        views[role] = WeightView(tensor.file, tensor.name, tensor.begin, shape, (shape[1], 1), dtype)
    biases = {role: view for role, view in views.items() if role.endswith("_bias")}
    return Expert(views.get("gate"), views["up"], views["down"], **biases)


def _intermediate_size(claim: Claim) -> int:
    """What the layer's first matrix says; all tensors are held against it."""
    matrices = [(role, tensor) for (_, role), tensor in claim.tensors.items() if not role.endswith("_bias")]
    if not matrices:
        return 0
    role, tensor = matrices[0]
    if len(tensor.shape) != 2:
        return 0
    return tensor.shape[1] if role == "down" else tensor.shape[0]
