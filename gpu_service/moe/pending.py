"""One layer's work on a batch, between Dispatcher.begin and Dispatcher.finish: what was sent, copied and planned."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import override

from gpu_service.cpu_experts.backend import PendingOutput
from gpu_service.errors import ExpertServiceError
from gpu_service.gpu_experts.streaming import ExpertCopy
from gpu_service.planning.planner import Plan

Routed = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Hidden rows [rows, hidden], expert ids [rows, k] and routing weights [rows, k]."""


class Capture(Protocol):
    """Takes the layers' rows in place of the dispatcher while CUDA graphs are captured."""

    def experts(self, layer: int, rows: Routed, meanwhile: Callable[[], None] | None) -> torch.Tensor:
        """Returns where the sums of a layer's experts will be, [rows, hidden].

        Args:
            layer: Index into the checkpoint's MoE layers.
            rows: What the experts get.
            meanwhile: Captures what is computed while the experts are; None: nothing is.
        """
        ...

    def begin(self, layer: int, rows: Routed) -> Callable[[], torch.Tensor]:
        """The same in two steps: what is computed before the result is called is computed while the experts are."""
        ...


class Rehearsal(Capture):
    """Has a step computed as it will be captured, but for the experts, which give zeros.

    What a library loads, chooses or allocates at the first call of its kind may be forbidden during a capture.
    """

    @override
    def experts(self, layer: int, rows: Routed, meanwhile: Callable[[], None] | None) -> torch.Tensor:
        if meanwhile is not None:
            meanwhile()
        return torch.zeros_like(rows[0])

    @override
    def begin(self, layer: int, rows: Routed) -> Callable[[], torch.Tensor]:
        return partial(torch.zeros_like, rows[0])


class CaptureError(RuntimeError):
    """The model's code cannot be captured as CUDA graphs."""


@dataclass(slots=True, kw_only=True)
class ExpertMessage:
    """The rows of one message to the CPU expert service."""

    rows: npt.NDArray[np.int64] | None
    """Their indices in the batch; None: the whole batch, in order."""
    hidden: torch.Tensor
    """[message's rows, hidden] on the CPU."""
    ids: torch.Tensor
    """[message's rows, k] int32 on the CPU; -1 for an expert that the device computes."""
    weights: torch.Tensor
    """[message's rows, k] float32 on the CPU."""
    route: str
    """The route that its selections count for: "streamed" if this process computes in the service's place."""
    sent_at: float
    """time.perf_counter()"""
    pending: PendingOutput | None = None
    """The answer to wait for; None if the message could not be sent."""


@dataclass(slots=True, kw_only=True)
class LayerWork:
    """One layer of a batch, sent and not joined."""

    layer: int
    hidden: torch.Tensor
    """[rows, hidden] on the device."""
    ids: npt.NDArray[np.int32]
    """[rows, k]; -1 is left out."""
    weights: npt.NDArray[np.float32]
    """[rows, k]"""
    plan: Plan
    messages: list[ExpertMessage]
    copies: Sequence[tuple[int, ExpertCopy]]
    """Streamed experts and their copies, in the order in which to wait for them."""
    began_at: float
    """time.perf_counter()"""
    first_row: int = 0
    """What the first row is in the forward, if a layer's rows are computed in several parts."""
    cpu_seconds: float = 0.0
    """What the CPU expert service computed for the messages that are joined."""

    def discard(self) -> None:
        """Gives up what was begun and is not needed: nothing of it stays copied or unread."""
        for _, copy in self.copies:
            copy.release()
        for message in self.messages:
            if message.pending is not None:
                with suppress(ExpertServiceError):  # the client has reported it
                    message.pending.join()
