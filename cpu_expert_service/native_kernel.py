"""The native kernel: a layer is described once, and then takes one call for each message.

What a message holds is checked here, by name, because C++ would read beyond tensors that do not fit.
"""

from ctypes import byref
from typing import Any

import torch
from typing_extensions import override

from cpu_expert_service.kernel import Kernel
from fiddler.expert_math import CLAMPED, LayerWeights, UnknownActivationError
from fiddler.kernels import matrices, native
from fiddler.kernels.matrices import refusal
from fiddler.kernels.native import Layer, Message, NativeError, Pool, Projection, available_tiers, check

_MESSAGE_DTYPES = (torch.float32, torch.bfloat16)
_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu_erf",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu_squared",
    "clamped_swiglu": "clamped_swiglu",
    "clamped_silu": "clamped_silu",
}
"""The library's name of each activation that a configuration may name."""
_BAD_EXPERT_ID = 4  # of abi.h


class NativeKernel(Kernel):
    """One tier of the native library on one pool of threads."""

    def __init__(self, pool: Pool, tier: str) -> None:
        """Owns the pool from now on.

        Raises:
            NativeError: This CPU does not have the tier.
        """
        if tier not in available_tiers():
            raise NativeError(f"{tier}: this CPU has {', '.join(available_tiers())}")
        self.name = tier
        self.tier = native.tiers().index(tier)
        self.pool = pool
        self.num_threads = pool.num_threads

    @override
    def prepare(self, layer: LayerWeights, output_dtype: torch.dtype | None = None) -> "NativeLayer":
        """Describes a layer to the library; what it returns keeps the weights alive.

        Args:
            layer: The weights.
            output_dtype: bfloat16 or float32; None for that of the hidden rows.

        Raises:
            NativeError: A dtype or a shape cannot be computed; the text names the tensor.
            UnknownActivationError: It does not have the activation.
        """
        return NativeLayer(self.pool, self.tier, _describe(layer), output_dtype)

    def close(self) -> None:
        """Ends the threads."""
        self.pool.close()


class NativeLayer:
    """A LayerFunction of the library."""

    def __init__(self, pool: Pool, tier: int, layer: Layer, output_dtype: torch.dtype | None) -> None:
        self.description = layer
        """The layer as C++ sees it."""
        self._pool = pool
        self._tier = tier
        self._output_dtype = output_dtype
        self._message = Message()
        self._pointers = byref(layer), byref(self._message)
        self._run = native.load().fiddler_run
        self._numbers = matrices.dtype_numbers()

    def __call__(self, hidden: torch.Tensor, expert_ids: torch.Tensor, routing_weights: torch.Tensor) -> torch.Tensor:
        """Computes a message.

        Raises:
            NativeError: A tensor is not what the layer takes, or the library refuses it.
        """
        _check_message(self.description.hidden_size, hidden, expert_ids, routing_weights)
        hidden, expert_ids, routing_weights = hidden.contiguous(), expert_ids.contiguous(), routing_weights.contiguous()
        output = torch.empty(hidden.shape, dtype=self._output_dtype or hidden.dtype)
        message, numbers = self._message, self._numbers
        message.rows, message.experts_per_row = expert_ids.shape
        message.hidden, message.expert_ids = hidden.data_ptr(), expert_ids.data_ptr()
        message.routing_weights, message.output = routing_weights.data_ptr(), output.data_ptr()
        message.hidden_dtype, message.output_dtype = numbers[hidden.dtype], numbers[output.dtype]
        status = self._run(self._pool.handle, self._tier, *self._pointers)
        if status:
            check(status, f"; there are {self.description.num_experts}" if status == _BAD_EXPERT_ID else "")
        return output


def _check_message(
    hidden_size: int, hidden: torch.Tensor, expert_ids: torch.Tensor, routing_weights: torch.Tensor
) -> None:
    shape = expert_ids.shape
    if hidden.dim() != 2 or hidden.shape[1] != hidden_size or hidden.dtype not in _MESSAGE_DTYPES:
        raise refusal("hidden", f"bfloat16 or float32 [rows, {hidden_size}]", hidden)
    if len(shape) != 2 or shape[0] != hidden.shape[0] or expert_ids.dtype is not torch.int32:
        raise refusal("expert_ids", f"int32 [{hidden.shape[0]}, k]", expert_ids)
    if routing_weights.shape != shape or routing_weights.dtype is not torch.float32:
        raise refusal("routing_weights", f"float32 {list(shape)}", routing_weights)


def _describe(layer: LayerWeights) -> Layer:
    """The layer as C++ sees it; it keeps alive what it points to."""
    if layer.activation not in _ACTIVATIONS:
        raise UnknownActivationError(
            f"activation {layer.activation!r} is not supported; known: {', '.join(_ACTIVATIONS)}"
        )
    if not layer.experts:
        raise NativeError("experts: there are none")
    intermediate_size, hidden_size = wide = matrices.shape_of(
        "experts[0].up", layer.experts[0].up, "intermediate, hidden"
    )
    described = Layer(
        num_experts=len(layer.experts),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        weight_dtype=matrices.format_number(layer.experts[0].up),
        activation=native.activations().index(_ACTIVATIONS[layer.activation]),
        alpha=layer.alpha,
        limit=layer.limit,
    )
    borrowed = described.borrowed = [layer]
    if any(expert.gate is not None for expert in layer.experts):
        described.gate = _projection(layer, "gate", shape=wide, borrowed=borrowed)
    elif layer.activation in CLAMPED:
        raise NativeError(f"experts[0].gate: {layer.activation} needs one, got None")
    described.up = _projection(layer, "up", shape=wide, borrowed=borrowed)
    described.down = _projection(layer, "down", shape=wide[::-1], borrowed=borrowed)
    if any(expert.factor is not None for expert in layer.experts):
        described.factor = _projection(layer, "factor", shape=wide, borrowed=borrowed)
    return described


def _projection(layer: LayerWeights, name: str, *, shape: tuple[int, ...], borrowed: list[Any]) -> Projection:
    projection = matrices.describe(
        f"experts[{{}}].{name}",
        [getattr(expert, name) for expert in layer.experts],
        like=layer.experts[0].up,
        shape=shape,
        borrowed=borrowed,
    )
    projection.biases = _biases(layer, name, length=shape[0], borrowed=borrowed)
    return projection


def _biases(layer: LayerWeights, name: str, *, length: int, borrowed: list[Any]) -> int | None:
    """The address of the experts' biases in float32; None if they have none."""
    biases: list[Any] = [getattr(expert, f"{name}_bias", None) for expert in layer.experts]
    if all(bias is None for bias in biases):
        return None
    for number, bias in enumerate(biases):
        if bias is None or bias.shape != (length,):
            got = "None" if bias is None else list(bias.shape)
            raise NativeError(f"experts[{number}].{name}_bias: expected [{length}], got {got}")
    widened = [bias.to(torch.float32).contiguous() for bias in biases]
    borrowed.append(widened)
    return matrices.addresses(widened, borrowed)
