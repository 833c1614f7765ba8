"""The interface to what computes the experts that are not on the device: the CPU expert service, or this process."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch

from fiddler.kernels.segments.caller import Posting


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


class PendingSum(PendingOutput, Protocol):
    """Rows that a backend is computing, and to which something may be added in the same call that waits for them."""

    def join_sum(self, addend: torch.Tensor) -> tuple[torch.Tensor, bool]:
        """Does what `join` does, and may add [rows, hidden] bfloat16, contiguous, on the CPU.

        Returns:
            The rows, and whether they are finite and the addend was added. If not, they are what `join` returns.
        """
        ...

    def counting(self) -> Callable[[], None]:
        """What counts the answer for the metrics, which `join` does and `join_sum` does not. It holds no rows."""
        ...


class PreparedMessage(Protocol):
    """A message whose rows are not computed yet."""

    @property
    def posting(self) -> Posting:
        """For the native call that computes the rows, and posts them."""
        ...

    def sent(
        self, slot: int, hidden: torch.Tensor, *, expert_ids: torch.Tensor, routing_weights: torch.Tensor
    ) -> PendingSum:
        """Takes note of what was posted, or sends it if it was not.

        Args:
            slot: Where native code posted it; negative: there was no room.
            hidden: [rows, hidden] on the CPU, contiguous, as they were posted.
            expert_ids: [rows, k] int32, likewise.
            routing_weights: [rows, k] float32, likewise.
        """
        ...


@runtime_checkable
class PreparingExperts(RemoteExperts, Protocol):
    """A backend whose messages native code may post."""

    def prepare(
        self, layer: int, *, rows: int, experts_per_row: int, timeout_seconds: float | None = None
    ) -> PreparedMessage | None:
        """Prepares the message that is sent next.

        Args:
            layer: Index into the checkpoint's MoE layers.
            rows: How many.
            experts_per_row: How many each.
            timeout_seconds: See `submit`.

        Returns:
            None if native code cannot post it, so that it is to be submitted.

        Raises:
            ExpertServiceError: The backend is lost.
        """
        ...
