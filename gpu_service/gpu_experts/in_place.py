"""Multiplies rows with the matrices of several experts in one launch, wherever these are in the GPU's memory.

It takes Triton, which PyTorch's CUDA build brings on Linux, and a GPU of compute capability 8 or more. No card has run
the kernel yet, so `grouped.py` compares what it gives with PyTorch's products before it relies on it.
"""

import importlib.util
import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import structlog
import torch

from fiddler.coding import CodedTensor, Coding
from fiddler.expert_math import ExpertWeights
from gpu_service.gpu_experts.projections import GATE_UP, num_outputs
from gpu_service.gpu_experts.slots import Holding

_LEAST_CAPABILITY: Final = (8, 0)
"""Products of tiles on older GPUs take a compiler minutes."""
_INPUTS: Final = {4: 32, 2: 128}
"""Inputs of a tile, by the bytes of a factor: a row of it is 128 or 256 bytes of memory."""
_PLAIN: Final = {"CODE": 0, "SCALE": 0, "GROUP_INPUTS": 1, "GROUP_OUTPUTS": 1, "HAS_ZEROS": False}
_TOLERANCES: Final = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.05}
"""Of sums, by the dtype of the rows: the length of their difference over their own. Rounding is far below it, and what
reads the wrong memory far above."""
_log = structlog.get_logger("gpu_service")


class InPlace:
    """What computes in place, for as long as nothing has failed."""

    def __init__(self, device: torch.device) -> None:
        """Loads nothing yet.

        Args:
            device: Where the experts are.
        """
        self._device = device
        self._is_usable: bool | None = None
        self._checked: set[object] = set()

    @property
    def is_used(self) -> bool:
        """Whether rows are multiplied in place; not if that cannot be, or once it failed."""
        if self._is_usable is None:
            self._is_usable = (
                self._device.type == "cuda"
                and importlib.util.find_spec("triton") is not None
                and torch.cuda.get_device_capability(self._device) >= _LEAST_CAPABILITY
            )
        return self._is_usable

    def is_checked(self, form: object) -> bool:
        """Whether experts of this form were once computed in place and gave the right sums."""
        return form in self._checked

    def tried(self, compute: Callable[[], torch.Tensor]) -> torch.Tensor | None:
        """What is computed in place; None, and nothing is computed so from now on, if that cannot be.

        Raises:
            torch.OutOfMemoryError: The device has no memory left.
        """
        try:
            return compute()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # no C compiler for what launches the kernel, or whatever its compiler says of it
            self._leave_out(f"{type(error).__name__}: {error}".splitlines()[0])
            return None

    def check(self, form: object, actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
        """Compares the first sums of a form. If they differ, nothing is computed in place any more."""
        norm = float(expected.double().norm())
        if not math.isfinite(norm):  # says nothing about the kernel; the next sums are compared
            return
        difference = float((actual - expected).double().norm()) / max(norm, 1e-9)
        if difference <= _TOLERANCES[dtype]:  # not if it is NaN
            self._checked.add(form)
        else:
            self._leave_out(f"sums differ by {difference:.3g} of their length")

    def _leave_out(self, reason: str) -> None:
        self._is_usable = False
        _log.warning("experts are not computed in place", reason=reason)


def facts_of(held: Sequence[Holding]) -> npt.NDArray[np.int64]:
    """[projections, experts, NUM_FACTS]: what the kernel is told, projections as in `Holding.facts`."""
    return np.stack([np.stack(list(each.facts.values())) for each in held], axis=1)


def form_of(held: Holding, rows: torch.Tensor) -> object:
    """What decides which code the kernel is compiled to: equal for experts and rows that it treats alike."""
    weights = held.weights
    tensors = tuple((name, tensor.shape, tensor.dtype) for name, tensor in weights.tensors())
    codings = tuple(
        matrix.coding for matrix in (weights.gate, weights.up, weights.down) if isinstance(matrix, CodedTensor)
    )
    return tensors, codings, rows.dtype


def products(
    rows: torch.Tensor, facts: torch.Tensor, weights: ExpertWeights, name: str, *, is_last: bool = False
) -> torch.Tensor:
    """One projection of every expert, in one launch: [experts, rows, outputs], in float32 if it is the last.

    Args:
        rows: [experts, rows, inputs], or [1, rows, inputs] for all experts.
        facts: [experts, NUM_FACTS] int64 on the device: of this projection.
        weights: An expert whose form all of them have.
        name: The projection.
        is_last: Whether it is the experts' last product.
    """
    from gpu_service.gpu_experts import products_kernel as kernel  # where Triton is

    num_experts, num_rows, num_inputs = len(facts), rows.shape[1], rows.shape[2]
    outputs = num_outputs(weights, name)
    dtype = torch.float32 if is_last else rows.dtype
    results = torch.empty(num_experts, num_rows, outputs, dtype=dtype, device=rows.device)
    factors = _factors(weights, name, rows.dtype)
    rows = rows.contiguous()
    grid = -(-outputs // kernel.OUTPUTS_AT_ONCE), num_experts
    kernel.products[grid](
        rows,
        facts,
        results,
        num_rows,
        num_inputs,
        outputs,
        OWN_ROWS=len(rows) > 1,
        **_constants(weights, name),
        FACTORS=kernel.factors_name(factors),
        ROWS=max(kernel.MIN_ROWS, 1 << (num_rows - 1).bit_length()),
        OUTPUTS=kernel.OUTPUTS_AT_ONCE,
        INPUTS=_INPUTS[factors.itemsize],
    )
    return results


def _factors(weights: ExpertWeights, name: str, dtype: torch.dtype) -> torch.dtype:
    """What rows of a dtype are multiplied in: their own, or float32 if the weights have another."""
    matrix = weights.up if name == GATE_UP else getattr(weights, name)
    return dtype if isinstance(matrix, CodedTensor) or matrix.dtype is dtype else torch.float32


def _constants(weights: ExpertWeights, name: str) -> dict[str, Any]:
    """What the kernel is compiled for."""
    from gpu_service.gpu_experts import products_kernel as kernel

    matrix = weights.up if name == GATE_UP else getattr(weights, name)
    bias = getattr(weights, f"{name}_bias", None)
    own = {"BIAS": None if bias is None else kernel.name_of(bias.dtype)}
    if not isinstance(matrix, CodedTensor):
        return own | _PLAIN | {"STORED": kernel.name_of(matrix.dtype)}
    coding: Coding = matrix.coding
    return own | {
        "CODE": coding.code.value,
        "STORED": kernel.name_of(coding.scale.dtype),
        "SCALE": coding.scale.value,
        "GROUP_INPUTS": coding.group_inputs,
        "GROUP_OUTPUTS": coding.group_outputs,
        "HAS_ZEROS": coding.has_zeros,
    }
