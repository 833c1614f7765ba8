"""The layout of OpenMoE: one tensor for each projection, in which a layer's experts are stacked, transposed.

The tensors are called wi_gate [E, H, 2I], wi_up [E, H, I] and wo [E, I, H]. An expert of OpenMoE is a gated MLP whose
gate is itself a SwiGLU: with x wi_gate = (a | b), it computes (a * silu(b) * (x wi_up)) wo. So b is what `Expert` calls
the gate, and a, which goes through no activation, is the factor.
"""

from dataclasses import dataclass

import torch

from fiddler.checkpoint.claims import Claim, tensors_by_role
from fiddler.checkpoint.errors import MissingTensorError, ShapeError
from fiddler.checkpoint.formats.stored import AnyStored, view_into
from fiddler.checkpoint.moe_config import MoeConfig
from fiddler.checkpoint.namings import Role
from fiddler.checkpoint.views import Expert, MatrixView


def stacked_experts(claim: Claim, config: MoeConfig, dtype: torch.dtype) -> tuple[Expert, ...]:
    """Every expert of one layer.

    Raises:
        MissingTensorError: A tensor is missing, or the number of experts is not the one in config.json.
        ShapeError: A shape does not fit the others or config.json.
    """
    stacks = tensors_by_role(claim, config)
    up = stacks["up"]
    num_experts, hidden, inner = up.shape if len(up.shape) == 3 else (0, 0, 0)
    if up.shape != (num_experts, config.hidden_size, inner) or min(up.shape) < 1:
        raise _shape_error(up, f"[experts, {config.hidden_size}, intermediate]", config)
    if config.num_experts not in (None, num_experts):
        raise MissingTensorError(
            f"{up.file} holds {num_experts} experts in the tensor {up.name!r}, but {config.path} says there are "
            f"{config.num_experts} ({config.num_experts_field})."
        )
    shapes: dict[Role, tuple[int, ...]] = {
        "factor_gate": (num_experts, hidden, 2 * inner),
        "down": (num_experts, inner, hidden),
    }
    for role, shape in shapes.items():
        if stacks[role].shape != shape:
            raise _shape_error(stacks[role], str(list(shape)), config)
    layer = _Stacks(stacks, inner, hidden, dtype)
    return tuple(layer.expert(number) for number in range(num_experts))


@dataclass(frozen=True, slots=True)
class _Stacks:
    """The three tensors of one layer."""

    stacks: dict[Role, AnyStored]
    inner: int
    hidden: int
    dtype: torch.dtype

    def expert(self, number: int) -> Expert:
        """The views of one expert."""
        inner, hidden = self.inner, self.hidden
        wide, begin = (inner, hidden), number * hidden * inner
        return Expert(
            gate=self._view("factor_gate", begin=2 * begin + inner, shape=wide, input_stride=2 * inner),
            up=self._view("up", begin=begin, shape=wide, input_stride=inner),
            down=self._view("down", begin=begin, shape=(hidden, inner), input_stride=hidden),
            factor=self._view("factor_gate", begin=2 * begin, shape=wide, input_stride=2 * inner),
        )

    def _view(self, role: Role, *, begin: int, shape: tuple[int, int], input_stride: int) -> MatrixView:
        """A matrix whose outputs are adjacent, `begin` elements into its stack."""
        return view_into(self.stacks[role], begin=begin, shape=shape, strides=(1, input_stride), dtype=self.dtype)


def _shape_error(tensor: AnyStored, expected: str, config: MoeConfig) -> ShapeError:
    return ShapeError(
        f"{tensor.file} holds the tensor {tensor.name!r} of shape {list(tensor.shape)}; with a hidden size of "
        f"{config.hidden_size} ({config.path}: {config.hidden_size_field}) and the layer's other tensors it must be "
        f"{expected}."
    )
