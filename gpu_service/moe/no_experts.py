"""Stands for the CPU expert service where only the rest of a model is to be tried or measured."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class _Zeros:
    """Zeros of the right shape."""

    output: torch.Tensor
    compute_seconds: float | None = None

    def join(self) -> torch.Tensor:
        return self.output


class NoExperts:
    """RemoteExperts that compute nothing, so that a forward takes only as long as its dense part."""

    available = True

    def submit(
        self,
        layer: int,
        hidden: torch.Tensor,
        *,
        expert_ids: torch.Tensor,
        routing_weights: torch.Tensor,
        timeout_seconds: float | None = None,
    ) -> _Zeros:
        """Returns zeros, [rows, hidden]."""
        return _Zeros(torch.zeros_like(hidden))
