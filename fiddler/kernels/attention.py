"""Attention of decode steps on the native kernels: one token of each of several sequences."""

import ctypes
import math
from ctypes import byref, c_float, c_int32, c_int64, c_void_p
from typing import Final

import torch

from fiddler.kernels import matrices, native
from fiddler.kernels.linear import LinearKernel
from fiddler.kernels.native import NativeError, check

DTYPES: Final = (torch.float32, torch.bfloat16)
"""Of queries, keys and values."""


class Attention(ctypes.Structure):
    """fiddler_attention of abi.h."""

    _fields_ = (
        *((name, c_int64) for name in ("rows", "heads", "kv_heads", "length", "key_size", "value_size")),
        ("queries", c_void_p),
        ("keys", c_void_p),
        ("values", c_void_p),
        *((name, c_int64) for name in ("query_row_stride", "query_head_stride")),
        *((name, c_int64) for name in ("key_row_stride", "key_head_stride", "key_stride")),
        *((name, c_int64) for name in ("value_row_stride", "value_head_stride", "value_stride")),
        ("visible", c_void_p),
        ("visible_stride", c_int64),
        ("sinks", c_void_p),
        ("output", c_void_p),
        ("scale", c_float),
        ("dtype", c_int32),
    )


class AttentionKernel:
    """softmax(scale q k) v by one tier of the native library, on the threads of a LinearKernel."""

    def __init__(self, kernel: LinearKernel) -> None:
        self._kernel = kernel
        self._tier = native.tiers().index(kernel.tier)
        self._attend = native.load().fiddler_attend
        self._numbers = matrices.dtype_numbers()

    def attend(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        *,
        visible: torch.Tensor | None = None,
        sinks: torch.Tensor | None = None,
        scale: float | None = None,
    ) -> torch.Tensor:
        """Scores and sums are of float32; the output is rounded once. What is hidden is not read.

        Args:
            queries: [rows, heads, key_size], of float32 or bfloat16, on the CPU. So are keys and values, and each
                vector of a head is contiguous.
            keys: [rows, kv_heads, length, key_size]; heads is a multiple of kv_heads.
            values: [rows, kv_heads, length, value_size].
            visible: [rows, length] bool: the positions that each row sees. None: all. A row that sees none gets zeros.
            sinks: [heads] float32: a score for each head that takes part in the softmax and has no value.
            scale: Of the scores; None: 1 / sqrt(key_size).

        Returns:
            [rows, heads, value_size], of the dtype of the queries.

        Raises:
            NativeError: The tensors do not fit.
        """
        output = queries.new_empty(len(queries), queries.shape[1], values.shape[-1])
        call = _describe(queries, keys, values, output, visible=visible, sinks=sinks)
        call.scale = 1 / math.sqrt(keys.shape[-1]) if scale is None else scale
        call.dtype = self._numbers[queries.dtype]
        with self._kernel.lock:
            status = self._attend(self._kernel.pool.handle, self._tier, byref(call))
        check(status)
        return output


def _describe(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    output: torch.Tensor,
    *,
    visible: torch.Tensor | None,
    sinks: torch.Tensor | None,
) -> Attention:
    rows, heads, key_size = _shape("queries", queries, 3)
    _, kv_heads, length, _ = _shape("keys", keys, 4)
    if keys.shape != (rows, kv_heads, length, key_size) or values.shape != (rows, kv_heads, length, values.shape[-1]):
        raise NativeError(f"keys {list(keys.shape)} and values {list(values.shape)} do not fit {rows} rows of queries")
    if not keys.dtype is values.dtype is queries.dtype:
        raise NativeError(f"queries, keys and values are of {queries.dtype}, {keys.dtype} and {values.dtype}")
    call = Attention(rows=rows, heads=heads, kv_heads=kv_heads, length=length, key_size=key_size)
    call.value_size = _shape("values", values, 4)[-1]
    call.queries, call.keys, call.values = queries.data_ptr(), keys.data_ptr(), values.data_ptr()
    call.output = output.data_ptr()
    call.query_row_stride, call.query_head_stride, _ = queries.stride()
    call.key_row_stride, call.key_head_stride, call.key_stride, _ = keys.stride()
    call.value_row_stride, call.value_head_stride, call.value_stride, _ = values.stride()
    if visible is not None:
        if visible.shape != (rows, length) or visible.dtype is not torch.bool or not _is_dense(visible):
            raise matrices.refusal("visible", f"bool [{rows}, {length}]", visible)
        call.visible, call.visible_stride = visible.data_ptr(), visible.stride(0)
    if sinks is not None:
        if sinks.shape != (heads,) or sinks.dtype is not torch.float32 or not _is_dense(sinks):
            raise matrices.refusal("sinks", f"float32 [{heads}]", sinks)
        call.sinks = sinks.data_ptr()
    return call


def _shape(name: str, tensor: torch.Tensor, dims: int) -> torch.Size:
    if tensor.dim() != dims or tensor.dtype not in DTYPES or not _is_dense(tensor):
        raise matrices.refusal(name, f"float32 or bfloat16, {dims} dimensions, the last one contiguous", tensor)
    return tensor.shape


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether it is on the CPU, and its last dimension contiguous."""
    return tensor.device.type == "cpu" and (tensor.stride(-1) == 1 or tensor.shape[-1] == 1)
