"""Whether all values of a tensor are finite."""

import math

import torch

from fiddler.kernels import matrices, native
from fiddler.kernels.native import NativeUnavailableError


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether no value is infinite or NaN.

    The native library looks at a few rows in a microsecond. Without it the values are summed, which takes one operation
    of PyTorch and not three; a sum that overflows is taken for a value that does.

    Args:
        tensor: Of a floating dtype.
    """
    number = _native_number(tensor)
    if number is None:
        return math.isfinite(tensor.sum(dtype=torch.float32).item())
    return bool(native.load().fiddler_is_finite(tensor.data_ptr(), tensor.numel(), number))


def _native_number(tensor: torch.Tensor) -> int | None:
    """The fiddler_dtype of a tensor that the library can look at."""
    if not tensor.is_cpu or not tensor.is_contiguous():
        return None
    try:
        return matrices.dtype_numbers().get(tensor.dtype)
    except NativeUnavailableError:
        return None
