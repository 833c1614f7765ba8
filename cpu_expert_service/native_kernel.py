"""The native kernel: a layer is described once, and then takes one call for each message.

Tensors are checked here, by name, because C++ would read beyond those that do not fit.
"""

import ctypes
from collections.abc import Sequence
from ctypes import byref, c_float, c_void_p
from functools import cache
from typing import Any

import torch
from typing_extensions import override

from cpu_expert_service.kernel import Kernel, LayerFunction
from fiddler.coding import CodedTensor
from fiddler.expert_math import CLAMPED, LayerWeights, Matrix, UnknownActivationError
from fiddler.kernels import native
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


@cache
def _dtype_numbers() -> dict[torch.dtype, int]:
    return {getattr(torch, name): number for number, name in enumerate(native.dtypes())}


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
        self.pool = pool
        self.num_threads = pool.num_threads

    @override
    def prepare(self, layer: LayerWeights, output_dtype: torch.dtype | None = None) -> LayerFunction:
        """Describes a layer to the library; the function that it returns keeps the weights alive.

        Args:
            layer: The weights.
            output_dtype: bfloat16 or float32; None for that of the hidden rows.

        Raises:
            NativeError: A dtype or a shape cannot be computed; the text names the tensor.
            UnknownActivationError: It does not have the activation.
        """
        tier = native.tiers().index(self.name)
        return _bind(self.pool, tier, layer=_describe(layer), output_dtype=output_dtype)

    def close(self) -> None:
        """Ends the threads."""
        self.pool.close()


def _bind(pool: Pool, tier: int, *, layer: Layer, output_dtype: torch.dtype | None) -> LayerFunction:
    run, message, numbers = native.load().fiddler_run, Message(), _dtype_numbers()
    layer_pointer, message_pointer = byref(layer), byref(message)
    hidden_size = layer.hidden_size

    def compute(hidden: torch.Tensor, expert_ids: torch.Tensor, routing_weights: torch.Tensor) -> torch.Tensor:
        _check_message(hidden_size, hidden, expert_ids, routing_weights)
        hidden, expert_ids, routing_weights = hidden.contiguous(), expert_ids.contiguous(), routing_weights.contiguous()
        output = torch.empty(hidden.shape, dtype=output_dtype or hidden.dtype)
        message.rows, message.experts_per_row = expert_ids.shape
        message.hidden, message.expert_ids = hidden.data_ptr(), expert_ids.data_ptr()
        message.routing_weights, message.output = routing_weights.data_ptr(), output.data_ptr()
        message.hidden_dtype, message.output_dtype = numbers[hidden.dtype], numbers[output.dtype]
        status = run(pool.handle, tier, layer_pointer, message_pointer)
        if status:
            check(status, f"; there are {layer.num_experts}" if status == _BAD_EXPERT_ID else "")
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


def _describe(layer: LayerWeights) -> Layer:
    """The layer as C++ sees it; it keeps alive what it points to."""
    if layer.activation not in _ACTIVATIONS:
        raise UnknownActivationError(
            f"activation {layer.activation!r} is not supported; known: {', '.join(_ACTIVATIONS)}"
        )
    if not layer.experts:
        raise NativeError("experts: there are none")
    intermediate_size, hidden_size = wide = _shape(layer.experts[0].up)
    described = Layer(
        num_experts=len(layer.experts),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        weight_dtype=_format_number(layer.experts[0].up),
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


def _shape(up: Matrix) -> tuple[int, int]:
    """[intermediate, hidden], once it is known that the matrix can be computed at all."""
    if isinstance(up, CodedTensor):
        return up.shape
    if up.dim() != 2 or min(up.shape) < 1 or up.dtype not in _dtype_numbers():
        raise _refusal("experts[0].up", "float32, bfloat16 or float16 [intermediate, hidden]", up)
    return up.shape[0], up.shape[1]


def _format_number(matrix: Matrix) -> int:
    """The fiddler_dtype or fiddler_code of a matrix."""
    if isinstance(matrix, CodedTensor):
        return len(native.dtypes()) + native.codes().index(matrix.coding.code.name.lower())
    return _dtype_numbers()[matrix.dtype]


def _projection(layer: LayerWeights, name: str, *, shape: tuple[int, ...], borrowed: list[Any]) -> Projection:
    if any(isinstance(getattr(expert, name), CodedTensor) for expert in layer.experts):
        return _coded_projection(layer, name, shape=shape, borrowed=borrowed)
    first: torch.Tensor = getattr(layer.experts[0], name)
    up = layer.experts[0].up
    due = up.coding.name if isinstance(up, CodedTensor) else str(up.dtype).removeprefix("torch.")
    for number, expert in enumerate(layer.experts):
        matrix = getattr(expert, name)
        label = f"experts[{number}].{name}"
        if matrix is None:
            raise NativeError(f"{label}: expected a matrix, got None")
        is_due = not isinstance(up, CodedTensor) and matrix.dtype == up.dtype and matrix.shape == shape
        if not is_due or matrix.device.type != "cpu":
            raise _refusal(label, f"{due} {list(shape)}", matrix)
        if matrix.stride() != first.stride():
            raise NativeError(f"{label}: expected strides {first.stride()}, got {matrix.stride()}")
    weights = _addresses([getattr(expert, name) for expert in layer.experts], borrowed)
    return Projection(weights, _biases(layer, name, length=shape[0], borrowed=borrowed), *first.stride())


def _coded_projection(layer: LayerWeights, name: str, *, shape: tuple[int, ...], borrowed: list[Any]) -> Projection:
    first = getattr(layer.experts[0], name)
    matrices: list[CodedTensor] = []
    for number, expert in enumerate(layer.experts):
        matrix, label = getattr(expert, name), f"experts[{number}].{name}"
        if not isinstance(matrix, CodedTensor) or not isinstance(first, CodedTensor):
            raise NativeError(f"{label}: some experts of the layer are coded, and some are not")
        _check_coded(label, matrix, first, layer.experts[0].up, shape)
        matrices.append(matrix)
    coding = first.coding
    multipliers = (c_float * len(matrices))(*(matrix.multiplier for matrix in matrices))
    borrowed.append(multipliers)
    return Projection(
        weights=_addresses([matrix.codes for matrix in matrices], borrowed),
        biases=_biases(layer, name, length=shape[0], borrowed=borrowed),
        out_stride=first.codes.stride(0),
        in_stride=1,
        scales=_addresses([matrix.scales for matrix in matrices], borrowed),
        zeros=_addresses([m.zeros for m in matrices if m.zeros is not None], borrowed) if coding.has_zeros else None,
        multipliers=ctypes.addressof(multipliers),
        scales_stride=first.scales.stride(0),
        group_inputs=coding.group_inputs,
        group_outputs=coding.group_outputs,
        first_output=first.first_output,
        scale_kind=native.scale_kinds().index(coding.scale.name.lower()),
    )


def _check_coded(label: str, matrix: CodedTensor, first: CodedTensor, up: Matrix, shape: tuple[int, ...]) -> None:
    coding = matrix.coding
    if matrix.shape != shape or coding != first.coding or matrix.device.type != "cpu":
        got = f"{coding.name} {list(matrix.shape)}"
        raise NativeError(f"{label}: expected {first.coding.name} {list(shape)}, got {got}")
    if not isinstance(up, CodedTensor) or up.coding.code != coding.code:
        raise NativeError(f"{label}: is {coding.name}, and experts[0].up is not of the same codes")
    if any(plane.stride(-1) != 1 for plane in matrix.planes().values()):
        raise NativeError(f"{label}: codes and scales of a row must be adjacent")
    strides = (matrix.codes.stride(0), matrix.scales.stride(0), matrix.first_output)
    if strides != (first.codes.stride(0), first.scales.stride(0), first.first_output):
        raise NativeError(f"{label}: expected the strides of experts[0].{label.rpartition('.')[2]}")
    group, inputs = coding.group_inputs, matrix.shape[1]
    if group != inputs and (group % 16 or (group % 32 and (coding.has_zeros or group != 16))):
        raise NativeError(
            f"{label}: groups of {group} inputs; multiples of 32 are supported, and 16 without zero points"
        )
    if matrix.zeros is not None and matrix.zeros.stride(0) != matrix.scales.stride(0):
        raise NativeError(f"{label}: zero points must be laid out as scales are")


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
    return _addresses(widened, borrowed)


def _addresses(tensors: Sequence[torch.Tensor], borrowed: list[Any]) -> int:
    """The address of an array of the tensors' addresses."""
    array = (c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
    borrowed.append(array)
    return ctypes.addressof(array)
