"""Quantises rows with the native library: fiddler/kernels/csrc/conversion/quantize.cpp."""

from ctypes import c_int32, c_int64, c_void_p
from functools import cache
from typing import Any, Final

import torch

from fiddler.kernels import native
from fiddler.kernels.native import NativeUnavailableError

_DTYPES: Final = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""By the numbers of fiddler_dtype in fiddler/kernels/csrc/abi.h."""
_NOT_FINITE: Final = 9


@cache
def _function() -> Any:
    """fiddler_quantize of the library; None if there is no library that has it."""
    try:
        function = native.load().fiddler_quantize
    except (NativeUnavailableError, AttributeError):
        return None
    function.restype = c_int32
    function.argtypes = (c_void_p, c_int32, c_int64, c_int64, c_int64, c_int32, c_void_p, c_void_p)
    return function


def is_built() -> bool:
    """Whether the native library is there."""
    return _function() is not None


def quantize_rows(weights: torch.Tensor, bits: int, codes: torch.Tensor, scales: torch.Tensor) -> None:
    """See `fiddler.convert.quantize.quantize_rows`. Other threads of Python run meanwhile.

    Raises:
        ValueError: A weight is infinite or not a number.
    """
    if weights.stride(1) != 1:
        weights = weights.contiguous()
    rows, inputs = weights.shape
    status = _function()(
        weights.data_ptr(),
        _DTYPES[weights.dtype],
        weights.stride(0),
        rows,
        inputs,
        bits,
        codes.data_ptr(),
        scales.data_ptr(),
    )
    if status == _NOT_FINITE:
        raise ValueError("a weight is infinite or not a number")
    native.check(status)
