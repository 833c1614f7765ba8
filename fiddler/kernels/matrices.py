"""Describes matrices, plain or coded, to the native library.

Tensors are checked here, by name, because C++ would read beyond those that do not fit.
"""

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_void_p
from functools import cache
from typing import Any

import torch

from fiddler.coding import CodedTensor
from fiddler.expert_math import Matrix
from fiddler.kernels import native
from fiddler.kernels.native import NativeError, Projection


@cache
def dtype_numbers() -> dict[torch.dtype, int]:
    """The fiddler_dtype of each dtype that plain matrices may have."""
    return {getattr(torch, name): number for number, name in enumerate(native.dtypes())}


def format_number(matrix: Matrix) -> int:
    """The fiddler_dtype or fiddler_code of a matrix."""
    if isinstance(matrix, CodedTensor):
        return len(native.dtypes()) + native.codes().index(matrix.coding.code.name.lower())
    return dtype_numbers()[matrix.dtype]


def shape_of(label: str, matrix: Matrix, what: str) -> tuple[int, int]:
    """[outputs, inputs], once it is known that the matrix can be computed at all.

    Args:
        label: The matrix's name in an error.
        matrix: The matrix.
        what: What its dimensions are, for an error.

    Raises:
        NativeError: It has a dtype or a shape that is not computed.
    """
    if isinstance(matrix, CodedTensor):
        return matrix.shape
    if matrix.dim() != 2 or min(matrix.shape) < 1 or matrix.dtype not in dtype_numbers():
        raise refusal(label, f"float32, bfloat16 or float16 [{what}]", matrix)
    return matrix.shape[0], matrix.shape[1]


def describe(
    label: str, matrices: Sequence[Any], *, like: Matrix, shape: tuple[int, ...], borrowed: list[Any]
) -> Projection:
    """One projection of several experts, or of one layer, as C++ sees it, without biases.

    Args:
        label: Their name in an error; "{}" in it becomes a matrix's number.
        matrices: One for each expert, all alike.
        like: A matrix that has the dtype or the codes that are due.
        shape: The shape that is due.
        borrowed: Is given what the description points to.

    Raises:
        NativeError: A matrix is none, or of another dtype, coding, shape or layout.
    """
    if any(isinstance(matrix, CodedTensor) for matrix in matrices):
        return _describe_coded(label, matrices, like=like, shape=shape, borrowed=borrowed)
    first = matrices[0]
    due = like.coding.name if isinstance(like, CodedTensor) else str(like.dtype).removeprefix("torch.")
    for number, matrix in enumerate(matrices):
        name = label.format(number)
        if matrix is None:
            raise NativeError(f"{name}: expected a matrix, got None")
        is_due = not isinstance(like, CodedTensor) and matrix.dtype == like.dtype and matrix.shape == shape
        if not is_due or matrix.device.type != "cpu":
            raise refusal(name, f"{due} {list(shape)}", matrix)
        if matrix.stride() != first.stride():
            raise NativeError(f"{name}: expected strides {first.stride()}, got {matrix.stride()}")
    return Projection(addresses(matrices, borrowed), None, *first.stride())


def _describe_coded(
    label: str, matrices: Sequence[Any], *, like: Matrix, shape: tuple[int, ...], borrowed: list[Any]
) -> Projection:
    first = matrices[0]
    for number, matrix in enumerate(matrices):
        name = label.format(number)
        if not isinstance(matrix, CodedTensor) or not isinstance(first, CodedTensor):
            raise NativeError(f"{name}: some experts of the layer are coded, and some are not")
        _check_coded(name, matrix, first, like, shape)
    coding = first.coding
    multipliers = (c_float * len(matrices))(*(matrix.multiplier for matrix in matrices))
    borrowed.append(multipliers)
    zeros = [matrix.zeros for matrix in matrices if matrix.zeros is not None]
    return Projection(
        weights=addresses([matrix.codes for matrix in matrices], borrowed),
        biases=None,
        out_stride=first.codes.stride(0),
        in_stride=1,
        scales=addresses([matrix.scales for matrix in matrices], borrowed),
        zeros=addresses(zeros, borrowed) if coding.has_zeros else None,
        multipliers=ctypes.addressof(multipliers),
        scales_stride=first.scales.stride(0),
        group_inputs=coding.group_inputs,
        group_outputs=coding.group_outputs,
        first_output=first.first_output,
        scale_kind=native.scale_kinds().index(coding.scale.name.lower()),
    )


def _check_coded(label: str, matrix: CodedTensor, first: CodedTensor, like: Matrix, shape: tuple[int, ...]) -> None:
    coding = matrix.coding
    if matrix.shape != shape or coding != first.coding or matrix.device.type != "cpu":
        got = f"{coding.name} {list(matrix.shape)}"
        raise NativeError(f"{label}: expected {first.coding.name} {list(shape)}, got {got}")
    if not isinstance(like, CodedTensor) or like.coding.code != coding.code:
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
    num_groups = coding.num_groups(inputs)
    if any(plane is not None and plane.shape[1] < num_groups for plane in (matrix.scales, matrix.zeros)):
        raise NativeError(f"{label}: expected scales, and zero points if there are any, of {num_groups} groups")
    if matrix.zeros is not None and matrix.zeros.stride(0) != matrix.scales.stride(0):
        raise NativeError(f"{label}: zero points must be laid out as scales are")


def addresses(tensors: Sequence[torch.Tensor], borrowed: list[Any]) -> int:
    """The address of an array of the tensors' addresses."""
    array = (c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
    borrowed.append(array)
    return ctypes.addressof(array)


def refusal(name: str, expected: str, got: torch.Tensor) -> NativeError:
    """The error for a tensor that is not what is computed."""
    return NativeError(f"{name}: expected {expected}, got {str(got.dtype).removeprefix('torch.')} {list(got.shape)}")
