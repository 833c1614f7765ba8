"""The layout of most families: every expert has a tensor for each projection, and perhaps for each bias.

Gate and up are [I, H] and down is [H, I], as a Linear stores its weight; biases are [I] and [H].
"""

import torch

from fiddler.checkpoint.claims import Claim, missing_tensor
from fiddler.checkpoint.errors import MissingTensorError, ShapeError
from fiddler.checkpoint.formats.stored import AnyStored, view_into
from fiddler.checkpoint.moe_config import MoeConfig
from fiddler.checkpoint.namings import Role
from fiddler.checkpoint.views import Expert, MatrixView


def separate_experts(claim: Claim, config: MoeConfig, dtype: torch.dtype) -> tuple[Expert, ...]:
    """Every expert of one layer.

    Raises:
        MissingTensorError: A tensor is missing, or there are more experts than config.json says.
        ShapeError: A shape does not fit the others or config.json.
    """
    ids: dict[int, AnyStored] = {expert: t for (expert, _), t in claim.tensors.items() if expert is not None}
    num_experts = config.num_experts or max(ids) + 1
    if max(ids) >= num_experts:
        tensor = ids[max(ids)]
        raise MissingTensorError(
            f"{tensor.file} holds the tensor {tensor.name!r}, but {config.path} says there are {num_experts} experts "
            f"({config.num_experts_field})."
        )
    layer = _Layer(claim, config, dtype)
    return tuple(layer.expert(number) for number in range(num_experts))


class _Layer:
    """One layer's tensors, and the shapes that all of them must have."""

    def __init__(self, claim: Claim, config: MoeConfig, dtype: torch.dtype) -> None:
        self._claim = claim
        self._config = config
        self._dtype = dtype
        self._wide, self._narrow = _intermediate_size(claim), config.hidden_size
        self._has_biases = not claim.naming.biases_are_optional or any(
            role.endswith("_bias") for _, role in claim.tensors
        )

    def expert(self, number: int) -> Expert:
        """The views of one expert."""
        views: dict[Role, MatrixView] = {}
        naming = self._claim.naming
        for part, role in naming.parts.items():
            tensor = self._claim.tensors.get((number, role))
            if tensor is None:
                if role.endswith("_bias") and not self._has_biases:
                    continue
                name = f"{self._claim.prefix}.{naming.expert_name.format(number)}.{part}{naming.suffix}"
                raise missing_tensor(self._claim, name, self._config)
            views[role] = self._view(tensor, role)
        biases = {role: view for role, view in views.items() if role.endswith("_bias")}
        return Expert(gate=views.get("gate"), up=views["up"], down=views["down"], **biases)

    def _view(self, tensor: AnyStored, role: Role) -> MatrixView:
        shape = (self._narrow, self._wide) if role.startswith("down") else (self._wide, self._narrow)
        is_bias = role.endswith("_bias")
        due = shape[:1] if is_bias else shape
        if tensor.shape != due:
            raise ShapeError(
                f"{tensor.file} holds the tensor {tensor.name!r} of shape {list(tensor.shape)}; with a hidden size of "
                f"{self._narrow} ({self._config.path}: {self._config.hidden_size_field}) and the layer's other experts "
                f"it must be {list(due)}."
            )
        shape = (1, shape[0]) if is_bias else shape
        return view_into(tensor, shape=shape, strides=(shape[1], 1), dtype=self._dtype)


def _intermediate_size(claim: Claim) -> int:
    """That of the layer's first matrix, which all tensors are then checked against."""
    matrices = [(role, tensor) for (_, role), tensor in claim.tensors.items() if not role.endswith("_bias")]
    if not matrices:
        return 0
    role, tensor = matrices[0]
    if len(tensor.shape) != 2:
        return 0
    return tensor.shape[1] if role == "down" else tensor.shape[0]
