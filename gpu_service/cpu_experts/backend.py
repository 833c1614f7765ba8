"""The interface to what computes the experts that are not on the device: the CPU expert service, or this process."""

from typing import Protocol

import torch


class PendingOutput(Protocol):
    """Rows that a backend is computing."""

    @property
    def compute_seconds(self) -> float | None:
        """Seconds of computing, without the way there and back; None before the answer, or if it is not known."""
        ...

    def join(self) -> torch.Tensor:
        """Waits for the weighted partial sums: [rows, hidden] on the CPU, in the dtype of the rows that were sent.

        Raises:
            ExpertServiceError: There will be no answer.
        """
        ...


class RemoteExperts(Protocol):
    """Computes experts that are not on the device."""

    @property
    def available(self) -> bool:
        """Whether `submit` may be called now."""
        ...

    def submit(
        self,
        layer: int,
        hidden: torch.Tensor,
        *,
        expert_ids: torch.Tensor,
        routing_weights: torch.Tensor,
        timeout_seconds: float | None = None,
    ) -> PendingOutput:
        """Sends one layer's rows and returns without waiting for the answer.

        Args:
            layer: Index into the checkpoint's MoE layers.
            hidden: [rows, hidden] on the CPU.
            expert_ids: [rows, k] int32 on the CPU; -1 is left out.
            routing_weights: [rows, k] float32 on the CPU.
            timeout_seconds: How long the answer may take; None: as long as the backend is configured for.

        Raises:
            ExpertServiceError: The backend is lost.
        """
        ...
