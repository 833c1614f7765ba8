"""The RMS norm of a few rows on the native library, in the calling thread."""

import torch

from fiddler.kernels import matrices, native
from fiddler.kernels.native import check


def rms_norm(rows: torch.Tensor, weight: torch.Tensor, epsilon: float, *, rounds_first: bool) -> torch.Tensor:
    """Divides rows by sqrt(mean(rows^2) + epsilon), and multiplies with the weight, in float32.

    It is for few values, whose computation PyTorch takes longer to begin than to do.

    Args:
        rows: [..., size] bfloat16 on the CPU, contiguous.
        weight: [size] bfloat16 on the CPU, contiguous.
        epsilon: Added to the mean of the squares.
        rounds_first: Whether rows are rounded to bfloat16 before they are multiplied with the weight, too.

    Returns:
        [..., size] bfloat16.

    Raises:
        NativeUnavailableError: There is no native library.
        NativeError: The tensors do not fit.
    """
    size = weight.shape[0]
    if rows.dtype is not torch.bfloat16 or rows.shape[-1] != size or not rows.is_contiguous():
        raise matrices.refusal("rows", f"contiguous bfloat16 [..., {size}]", rows)
    if weight.dtype is not torch.bfloat16 or weight.dim() != 1 or not weight.is_contiguous():
        raise matrices.refusal("weight", "contiguous bfloat16 [size]", weight)
    output = torch.empty_like(rows)
    normalize = native.load().fiddler_normalize
    number = rows.numel() // size
    check(normalize(number, size, rows.data_ptr(), weight.data_ptr(), output.data_ptr(), epsilon, rounds_first))
    return output
