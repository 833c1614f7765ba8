"""Computes resident experts where they are, by the kernel that Triton interprets on the CPU."""

import pytest

from gpu_service.gpu_experts import grouped, in_place
from gpu_service.gpu_experts.in_place import InPlace


def compute_in_place(monkeypatch: pytest.MonkeyPatch, *, tile: int = 128) -> None:
    """Has resident experts computed as if they were large, and fails if the kernel is left out.

    Args:
        monkeypatch: Undoes it.
        tile: Outputs and inputs of a tile: the interpreter takes about as long for a large one as for a small one.
    """
    pytest.importorskip("triton", reason="Triton is not installed: there is none for this platform")
    from gpu_service.gpu_experts import products_kernel

    monkeypatch.setattr(grouped, "MAX_EXPERT_BYTES", 0)
    monkeypatch.setattr(products_kernel, "OUTPUTS_AT_ONCE", tile)
    monkeypatch.setattr(in_place, "_INPUTS", {4: tile, 2: tile})
    monkeypatch.setattr(InPlace, "_leave_out", _fail)


def _fail(kernel: InPlace, reason: str) -> None:
    raise AssertionError(reason)
