"""The native kernel: a layer laid out once, then one call for each message.

Tensors are checked here, by name, before C++ would read past them.
"""

import ctypes
from collections.abc import Sequence
from ctypes import byref, c_void_p
from typing import Any

import torch

from cpu_expert_service.kernel import LayerFunction
from cpu_expert_service.native import TIERS, Layer, Message, NativeError, Pool, Projection, available_tiers, check, load
from fiddler.expert_math import CLAMPED, LayerWeights, UnknownActivationError

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_MESSAGE_DTYPES = (torch.float32, torch.bfloat16)
_ACTIVATIONS = {
    "silu": 0,
    "swish": 0,
    "gelu": 1,
    "gelu_new": 2,
    "gelu_pytorch_tanh": 2,
    "relu": 3,
    "relu2": 4,
    "clamped_swiglu": 5,
    "clamped_silu": 6,
}
_BAD_EXPERT_ID = 4


class NativeKernel:
    """One tier of the native library on one pool of threads."""

    def __init__(self, pool: Pool, tier: str) -> None:
        """Takes the pool as its own.

        Raises:
            NativeError: This CPU does not have the tier.
        """
        if tier not in available_tiers():
            raise NativeError(f"{tier}: this CPU has {', '.join(available_tiers())}")
        self.name = tier
        self.pool = pool
        self.num_threads = pool.num_threads

    def prepare(self, layer: LayerWeights, output_dtype: torch.dtype | None = None) -> LayerFunction:
        """Lays out a layer; the function that it returns keeps the weights alive.

        Args:
            layer: The weights.
            output_dtype: bfloat16 or float32; None for that of the hidden rows.

        Raises:
            NativeError: A dtype or a shape is none that is computed; it says which.
            UnknownActivationError: It does not have the activation.
        """
        described, borrowed = _describe(layer)
        return _bind(self.pool, TIERS.index(self.name), described, borrowed, output_dtype)

    def close(self) -> None:
        """Ends the threads."""
        self.pool.close()


def _bind(pool: Pool, tier: int, layer: Layer, borrowed: Any, output_dtype: torch.dtype | None) -> LayerFunction:
    run, message = load().fiddler_run, Message()
    layer_pointer, message_pointer = byref(layer), byref(message)
    hidden_size = layer.hidden_size

    def compute(hidden: torch.Tensor, expert_ids: torch.Tensor, routing_weights: torch.Tensor) -> torch.Tensor:
        _check_message(hidden_size, hidden, expert_ids, routing_weights)
        hidden, expert_ids, routing_weights = hidden.contiguous(), expert_ids.contiguous(), routing_weights.contiguous()
        output = torch.empty(hidden.shape, dtype=output_dtype or hidden.dtype)
        message.rows, message.experts_per_row = expert_ids.shape
        message.hidden, message.expert_ids = hidden.data_ptr(), expert_ids.data_ptr()
        message.routing_weights, message.output = routing_weights.data_ptr(), output.data_ptr()
        message.hidden_dtype, message.output_dtype = _DTYPES[hidden.dtype], _DTYPES[output.dtype]
        status = run(pool.handle, tier, layer_pointer, message_pointer)
        if status:
            check(status, f"; there are {borrowed[0]}" if status == _BAD_EXPERT_ID else "")
        return output

    return compute


def _check_message(
    hidden_size: int, hidden: torch.Tensor, expert_ids: torch.Tensor, routing_weights: torch.Tensor
) -> None:
    shape = expert_ids.shape
    if hidden.dim() != 2 or hidden.shape[1] != hidden_size or hidden.dtype not in _MESSAGE_DTYPES:
        raise _refusal("hidden", f"bfloat16 or float32 [rows, {hidden_size}]", hidden)
    if len(shape) != 2 or shape[0] != hidden.shape[0] or expert_ids.dtype is not torch.int32:
        raise _refusal("expert_ids", f"int32 [{hidden.shape[0]}, k]", expert_ids)
    if routing_weights.shape != shape or routing_weights.dtype is not torch.float32:
        raise _refusal("routing_weights", f"float32 {list(shape)}", routing_weights)


def _refusal(name: str, expected: str, got: torch.Tensor) -> NativeError:
    return NativeError(f"{name}: expected {expected}, got {str(got.dtype).removeprefix('torch.')} {list(got.shape)}")


def _describe(layer: LayerWeights) -> tuple[Layer, list[Any]]:
    """The layer as C++ sees it, and what must live as long; the first of that is the number of experts."""
    if layer.activation not in _ACTIVATIONS:
        raise UnknownActivationError(
            f"activation {layer.activation!r} is not supported; known: {', '.join(_ACTIVATIONS)}"
        )
    if not layer.experts:
        raise NativeError("experts: there are none")
    up = layer.experts[0].up
    if up.dim() != 2 or min(up.shape) < 1 or up.dtype not in _DTYPES:
        raise _refusal("experts[0].up", "float32, bfloat16 or float16 [intermediate, hidden]", up)
    wide = tuple(up.shape)
    described = Layer(len(layer.experts), wide[1], wide[0], _DTYPES[up.dtype], _ACTIVATIONS[layer.activation])
    described.alpha, described.limit = layer.alpha, layer.limit
    borrowed: list[Any] = [len(layer.experts), layer, described]
    if layer.experts[0].gate is not None or any(expert.gate is not None for expert in layer.experts):
        described.gate = _projection(layer, "gate", wide, borrowed)
    elif layer.activation in CLAMPED:
        raise NativeError(f"experts[0].gate: {layer.activation} needs one, got None")
    described.up = _projection(layer, "up", wide, borrowed)
    described.down = _projection(layer, "down", wide[::-1], borrowed)
    if any(expert.factor is not None for expert in layer.experts):
        described.factor = _projection(layer, "factor", wide, borrowed)
    return described, borrowed


def _projection(layer: LayerWeights, name: str, shape: tuple[int, ...], borrowed: list[Any]) -> Projection:
    first: torch.Tensor = getattr(layer.experts[0], name)
    for number, expert in enumerate(layer.experts):
        matrix = getattr(expert, name)
        label = f"experts[{number}].{name}"
        if matrix is None:
            raise NativeError(f"{label}: expected a matrix, got None")
        if matrix.shape != shape or matrix.dtype != layer.experts[0].up.dtype or matrix.device.type != "cpu":
            raise _refusal(label, f"{str(layer.experts[0].up.dtype).removeprefix('torch.')} {list(shape)}", matrix)
        if matrix.stride() != first.stride():
            raise NativeError(f"{label}: expected strides {first.stride()}, got {matrix.stride()}")
    weights = _addresses([getattr(expert, name) for expert in layer.experts], borrowed)
    return Projection(weights, _biases(layer, name, shape[0], borrowed), *first.stride())


def _biases(layer: LayerWeights, name: str, length: int, borrowed: list[Any]) -> int | None:
    """The address of the experts' biases in float32; None where they have none."""
    biases: list[Any] = [getattr(expert, f"{name}_bias", None) for expert in layer.experts]
    if all(bias is None for bias in biases):
        return None
    for number, bias in enumerate(biases):
        if bias is None or bias.shape != (length,):
            got = "None" if bias is None else list(bias.shape)
            raise NativeError(f"experts[{number}].{name}_bias: expected [{length}], got {got}")
    widened = [bias.to(torch.float32).contiguous() for bias in biases]
    borrowed.append(widened)
    return _addresses(widened, borrowed)


def _addresses(tensors: Sequence[torch.Tensor], borrowed: list[Any]) -> int:
    array = (c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
    borrowed.append(array)
    return ctypes.addressof(array)
