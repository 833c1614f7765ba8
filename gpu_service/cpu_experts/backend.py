"""The interface of what computes experts that are not on the device: the CPU expert service, or this process."""

from typing import Protocol

import torch


class PendingOutput(Protocol):
    """Rows that are being computed elsewhere."""

    @property
    def compute_seconds(self) -> float | None:
        """What it took to compute them, without the way there and back; None before the answer, or if unknown."""
        ...

    def join(self) -> torch.Tensor:
        """Waits for the weighted partial sums, [rows, hidden] on the CPU, in the dtype of the rows that were sent.

        Raises:
            ExpertServiceError: There is no answer, and will be none.
        """
        ...


class RemoteExperts(Protocol):
    """What computes experts that are not on the device."""

    @property
    def available(self) -> bool:
        """Whether it may be asked now."""
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
        """Sends one layer's rows and returns at once.

        Args:
            layer: Index into the checkpoint's MoE layers.
            hidden: [rows, hidden] on the CPU.
            expert_ids: [rows, k] int32 on the CPU; -1 where the expert is computed here.
            routing_weights: [rows, k] float32 on the CPU.
            timeout_seconds: How long the answer may take; None: as long as is configured.

        Raises:
            ExpertServiceError: It cannot be asked.
        """
        ...
