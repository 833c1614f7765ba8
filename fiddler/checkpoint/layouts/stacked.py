"""Experts that lie in one tensor for each projection, transposed, as OpenMoE's do: views of every expert's matrices.

They are called wi_gate [E, H, 2I], wi_up [E, H, I] and wo [E, I, H]. An expert of OpenMoE is a gated MLP whose gate is
a SwiGLU itself: with x wi_gate = (a | b) it is (a * silu(b) * (x wi_up)) wo. So b is what `Expert` calls the gate, and
a, which goes through no activation, the factor. It opens no file and reads no weight.
"""

from dataclasses import dataclass

import torch

from fiddler.checkpoint.claims import Claim
from fiddler.checkpoint.errors import MissingTensorError, ShapeError
from fiddler.checkpoint.moe_config import MoeConfig
from fiddler.checkpoint.namings import Role
from fiddler.checkpoint.safetensors_index import StoredTensor
from fiddler.checkpoint.views import Expert, WeightView


def is_stacked(claim: Claim) -> bool:
    """Whether a layer's experts lie so."""
    return "factor_gate" in claim.naming.parts.values()


def stacked_experts(claim: Claim, config: MoeConfig, dtype: torch.dtype) -> tuple[Expert, ...]:
    """Every expert of one layer.

    Raises:
        MissingTensorError: A tensor is missing, or there are not as many experts as config.json says.
        ShapeError: A shape does not fit the others or config.json.
    """
    stacks: dict[Role, StoredTensor] = {}
    for part, role in claim.naming.parts.items():
        if (None, role) not in claim.tensors:
            raise MissingTensorError(
                f"{config.path.parent} lacks the tensor '{claim.prefix}.{part}', though it holds others of the experts "
                f"of decoder layer {claim.decoder_layer}."
            )
        stacks[role] = claim.tensors[None, role]
    up = stacks["up"]
    num_experts, hidden, inner = up.shape if len(up.shape) == 3 else (0, 0, 0)
    if up.shape != (num_experts, config.hidden_size, inner) or min(up.shape) < 1:
        raise _shape_error(up, f"[experts, {config.hidden_size}, intermediate]", config)
    if config.num_experts not in (None, num_experts):
        raise MissingTensorError(
            f"{up.file} holds {num_experts} experts in the tensor {up.name!r}, but {config.path} says there are "
            f"{config.num_experts}."
        )
    shapes: dict[Role, tuple[int, ...]] = {
        "factor_gate": (num_experts, hidden, 2 * inner),
        "down": (num_experts, inner, hidden),
    }
    for role, shape in shapes.items():
        if stacks[role].shape != shape:
            raise _shape_error(stacks[role], str(list(shape)), config)
    layout = _Stacks(stacks, inner, hidden, dtype)
    return tuple(layout.expert(number) for number in range(num_experts))


@dataclass(frozen=True, slots=True)
class _Stacks:
    """How one layer's experts lie in its three tensors."""

    stacks: dict[Role, StoredTensor]
    inner: int
    hidden: int
    dtype: torch.dtype

    def expert(self, number: int) -> Expert:
        """The views of one expert."""
        inner, hidden = self.inner, self.hidden
        wide, begin = (inner, hidden), number * hidden * inner
        return Expert(
            gate=self._view("factor_gate", 2 * begin + inner, wide, 2 * inner),
            up=self._view("up", begin, wide, inner),
            down=self._view("down", begin, (hidden, inner), hidden),
            factor=self._view("factor_gate", 2 * begin, wide, 2 * inner),
        )

    def _view(self, role: Role, begin: int, shape: tuple[int, int], input_stride: int) -> WeightView:
        """A matrix whose outputs lie side by side; it begins so many elements into the stack."""
        stack = self.stacks[role]
        offset_bytes = stack.begin + begin * self.dtype.itemsize
        return WeightView(stack.file, stack.name, offset_bytes, shape, (1, input_stride), self.dtype)


def _shape_error(tensor: StoredTensor, expected: str, config: MoeConfig) -> ShapeError:
    return ShapeError(
        f"{tensor.file} holds the tensor {tensor.name!r} of shape {list(tensor.shape)}; with a hidden size of "
        f"{config.hidden_size} ({config.path}) and the layer's other tensors it must be {expected}."
    )
