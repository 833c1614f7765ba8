"""Routers of MoE layers on the native kernels: rows times a matrix, scores, and the choice, in one call."""

import ctypes
from ctypes import byref, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from enum import IntEnum

import torch

from fiddler.kernels import matrices, native
from fiddler.kernels.linear import LinearKernel, describe
from fiddler.kernels.native import NativeError, Product, check


class Scoring(IntEnum):
    """fiddler_scoring of abi.h: what becomes of logits."""

    SOFTMAX = 0
    """Of all experts, before the choice."""
    SOFTMAX_OF_CHOSEN = 1
    SIGMOID = 2


class _Router(ctypes.Structure):
    """fiddler_router of abi.h."""

    _fields_ = (
        ("gate", Product),
        ("k", c_int64),
        *((name, c_int32) for name in ("scoring", "keeps_logits", "rounds_weights", "normalizes")),
        ("added", c_float),
        ("factor", c_float),
        ("corrections", c_void_p),
        ("groups", c_int64),
        ("kept_groups", c_int64),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterWeights:
    """A router, and how it computes."""

    weight: torch.Tensor
    """[experts, hidden], on the CPU."""
    k: int
    """Experts of a row."""
    scoring: Scoring
    bias: torch.Tensor | None = None
    """[experts], added to logits."""
    keeps_logits: bool = False
    """Whether logits stay float32; otherwise they are rounded to bfloat16."""
    rounds_weights: bool = False
    """Whether routing weights are rounded to bfloat16."""
    normalizes: bool = False
    """Whether routing weights of a row are divided by their sum."""
    added: float = 0.0
    """To that sum."""
    factor: float = 1.0
    """Of the routing weights."""
    corrections: torch.Tensor | None = None
    """[experts] float32, added to scores for the choice alone."""
    groups: int = 1
    """Of adjacent experts; a group counts by the sum of its two best scores."""
    kept_groups: int = 1
    """Experts are chosen from so many groups."""


Routed = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Logits [rows, experts] and routing weights [rows, k], both float32, and expert ids [rows, k] int32."""


class RouterKernel:
    """One router on one tier of the native library, on the threads of a LinearKernel."""

    def __init__(self, kernel: LinearKernel, router: RouterWeights) -> None:
        """Describes the router to the library. The tensors are kept alive.

        Raises:
            NativeError: It cannot be computed; the text says why.
        """
        gate = describe(router.weight, router.bias)
        if not 1 <= router.k <= gate.outputs or gate.outputs % router.groups:
            raise NativeError(f"{router.k} of {gate.outputs} experts in {router.groups} groups cannot be chosen")
        self._call = _Router(gate=gate, k=router.k, scoring=router.scoring, groups=router.groups)
        self._call.keeps_logits, self._call.rounds_weights = router.keeps_logits, router.rounds_weights
        self._call.normalizes, self._call.added, self._call.factor = router.normalizes, router.added, router.factor
        self._call.kept_groups = router.kept_groups
        corrections = router.corrections
        if corrections is not None:
            if corrections.shape != (gate.outputs,) or corrections.dtype is not torch.float32:
                raise matrices.refusal("corrections", f"float32 [{gate.outputs}]", corrections)
            self._call.corrections = corrections.data_ptr()
        self._kept = router, gate
        self._experts, self._inputs = int(gate.outputs), int(gate.inputs)
        self.k = router.k
        """Experts of a row."""
        self._kernel = kernel
        self._tier = native.tiers().index(kernel.tier)
        self._route = native.load().fiddler_route

    @property
    def address(self) -> int:
        """Of the library's fiddler_router, which lives as long as this object."""
        return ctypes.addressof(self._call)

    def room(self, rows: int) -> Routed:
        """Memory for what is chosen for so many rows."""
        ids = torch.empty(rows, self.k, dtype=torch.int32)
        return torch.empty(rows, self._experts), torch.empty(rows, self.k), ids

    def route(self, rows: torch.Tensor) -> Routed:
        """Chooses experts. The best come first; of equal ones, those with the lower number.

        Args:
            rows: [rows, hidden] bfloat16, contiguous, on the CPU.

        Raises:
            NativeError: The rows do not fit.
        """
        if rows.dim() != 2 or rows.shape[1] != self._inputs or rows.dtype is not torch.bfloat16:
            raise matrices.refusal("rows", f"bfloat16 [rows, {self._inputs}]", rows)
        number = len(rows)
        logits, weights, ids = self.room(number)
        with self._kernel.lock:
            status = self._route(
                self._kernel.pool.handle,
                self._tier,
                byref(self._call),
                number,
                rows.contiguous().data_ptr(),
                logits.data_ptr(),
                weights.data_ptr(),
                ids.data_ptr(),
            )
        check(status)
        return logits, weights, ids
