"""The layout of families such as gpt-oss: one tensor holds gate and up of all experts of a layer, another one down.

As Linear weights the two are [E, 2I, H] and [E, H, I]; some families store them transposed, [E, H, 2I] and [E, I, H].
Biases, where there are any, are [E, 2I] and [E, H].
"""

from dataclasses import dataclass
from math import prod

import torch

from fiddler.checkpoint.claims import Claim, missing_tensor
from fiddler.checkpoint.errors import MissingTensorError, ShapeError
from fiddler.checkpoint.formats.stored import AnyStored, view_into
from fiddler.checkpoint.moe_config import MoeConfig
from fiddler.checkpoint.views import Expert, MatrixView


def fused_experts(claim: Claim, config: MoeConfig, dtype: torch.dtype) -> tuple[Expert, ...]:
    """Every expert of one layer.

    The two shapes together show whether the tensors are transposed: one of them alone can be square (2I = H, or I = H),
    but never both. No shape shows whether gate and up alternate; `Naming.interleaved_in` does.

    Raises:
        MissingTensorError: A tensor is missing, or the number of experts is not the one in config.json.
        ShapeError: A shape does not fit the others or config.json.
    """
    tensors = _fused_tensors(claim, config)
    gate_up, down = tensors["gate_up"], tensors["down"]
    num_experts, hidden = gate_up.shape[0], config.hidden_size
    if num_experts != (config.num_experts or num_experts) or num_experts == 0:
        raise MissingTensorError(
            f"{gate_up.file} holds {num_experts} experts in the tensor {gate_up.name!r}, but {config.path} says there "
            f"are {config.num_experts} ({config.num_experts_field})."
        )
    inner = prod(down.shape) // (num_experts * hidden)
    shapes = gate_up.shape[1:], down.shape[1:]
    if down.shape[0] != num_experts or inner == 0:
        raise _fused_shape_error(down, config)
    if shapes == ((2 * inner, hidden), (hidden, inner)):
        transposed = False
    elif shapes == ((hidden, 2 * inner), (inner, hidden)):
        transposed = True
    else:
        raise _fused_shape_error(gate_up if sorted(down.shape[1:]) == sorted((hidden, inner)) else down, config)
    for role, length in (("gate_up_bias", 2 * inner), ("down_bias", hidden)):
        if role in tensors and tensors[role].shape != (num_experts, length):
            raise _bias_shape_error(tensors[role], [num_experts, length])
    interleaved = not claim.naming.interleaved_in.isdisjoint((config.model_type, config.text_model_type))
    layer = _Fused(
        tensors=tensors, inner=inner, hidden=hidden, dtype=dtype, transposed=transposed, interleaved=interleaved
    )
    return tuple(layer.expert(number) for number in range(num_experts))


def _fused_tensors(claim: Claim, config: MoeConfig) -> dict[str, AnyStored]:
    """The layer's tensors by role: both matrices, and either both biases or none."""
    tensors: dict[str, AnyStored] = {}
    for part, role in claim.naming.parts.items():
        tensor = claim.tensors.get((None, role))
        is_bias = role.endswith("_bias")
        if tensor is None:
            if not is_bias or any(other.endswith("_bias") for _, other in claim.tensors):
                raise missing_tensor(claim, f"{claim.prefix}.{part}", config)
            continue
        if len(tensor.shape) != 3 - is_bias:
            raise _fused_shape_error(tensor, config)
        tensors[role] = tensor
    return tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fused:
    """The tensors of one layer, and how they hold its experts."""

    tensors: dict[str, AnyStored]
    inner: int
    hidden: int
    dtype: torch.dtype
    transposed: bool
    interleaved: bool

    def expert(self, number: int) -> Expert:
        """The views of one expert."""
        inner, hidden = self.inner, self.hidden
        # the distance, in elements, to the next of gate_up's 2I outputs, and to the next input
        output_stride, input_stride = (1, 2 * inner) if self.transposed else (hidden, 1)
        up_begin = output_stride if self.interleaved else inner * output_stride
        strides = (output_stride * 2 if self.interleaved else output_stride, input_stride)
        wide, begin = (inner, hidden), number * 2 * inner * hidden
        down_strides = (1, hidden) if self.transposed else (inner, 1)
        return Expert(
            gate=self._view("gate_up", begin=begin, shape=wide, strides=strides),
            up=self._view("gate_up", begin=begin + up_begin, shape=wide, strides=strides),
            down=self._view("down", begin=begin // 2, shape=(hidden, inner), strides=down_strides),
            **self._biases(number),
        )

    def _biases(self, number: int) -> dict[str, MatrixView]:
        if "down_bias" not in self.tensors:
            return {}
        hidden, inner, begin = self.hidden, self.inner, number * 2 * self.inner
        up_begin, stride = (1, 2) if self.interleaved else (inner, 1)
        wide, strides = (1, inner), (2 * inner, stride)
        return {
            "gate_bias": self._view("gate_up_bias", begin=begin, shape=wide, strides=strides),
            "up_bias": self._view("gate_up_bias", begin=begin + up_begin, shape=wide, strides=strides),
            "down_bias": self._view("down_bias", begin=number * hidden, shape=(1, hidden), strides=(hidden, 1)),
        }

    def _view(self, role: str, *, begin: int, shape: tuple[int, int], strides: tuple[int, int]) -> MatrixView:
        """A view that begins so many elements into a tensor."""
        return view_into(self.tensors[role], begin=begin, shape=shape, strides=strides, dtype=self.dtype)


def _bias_shape_error(tensor: AnyStored, shape: list[int]) -> ShapeError:
    return ShapeError(
        f"{tensor.file} holds the tensor {tensor.name!r} of shape {list(tensor.shape)}; with the layer's other tensors "
        f"it must be {shape}."
    )


def _fused_shape_error(tensor: AnyStored, config: MoeConfig) -> ShapeError:
    return ShapeError(
        f"{tensor.file} holds the tensor {tensor.name!r} of shape {list(tensor.shape)}, which fits neither the layer's "
        f"other tensor nor the {config.hidden_size_field} of {config.hidden_size} in {config.path}, transposed or not."
    )
