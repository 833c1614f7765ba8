"""A MoE layer's work on one batch, between its beginning and its end. It does nothing itself."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from gpu_service.cpu_experts.backend import PendingOutput
from gpu_service.gpu_experts.streaming import ExpertCopy
from gpu_service.planning.planner import Plan

Ids = npt.NDArray[np.int32]


@dataclass(slots=True)
class ExpertMessage:
    """The rows of one message to the CPU expert service."""

    rows: npt.NDArray[np.int64] | None
    """Their indices in the batch; None: all of it, in order."""
    hidden: torch.Tensor
    """[part, hidden] on the CPU, as are the next two."""
    ids: torch.Tensor
    """[part, k] int32; -1 where the expert is computed here."""
    weights: torch.Tensor
    """[part, k] float32."""
    pending: PendingOutput | None
    """None where it could not be sent."""
    route: str
    """As selections are counted: what is computed in this process in the service's place is not remote."""
    sent_at: float
    """time.perf_counter()"""


@dataclass(slots=True)
class LayerWork:
    """One layer's rows, sent and not joined."""

    layer: int
    hidden: torch.Tensor
    """[rows, hidden] on the device."""
    ids: Ids
    weights: npt.NDArray[np.float32]
    plan: Plan
    messages: list[ExpertMessage]
    copies: Sequence[tuple[int, ExpertCopy]]
    began_at: float
    """time.perf_counter()"""
    cpu_seconds: float = 0.0
    """What the CPU expert service computed for it, as far as it is joined."""
