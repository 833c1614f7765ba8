"""Layers of few rows of which the CPU expert service computes everything: sent at once, and counted while it computes.

Such a layer needs no plan. In a decode step of a model with small experts, planning and counting would take as long as
a third of the experts, and the service would wait for it.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch

from gpu_service.cpu_experts.backend import PendingOutput, RemoteExperts
from gpu_service.errors import ExpertServiceError
from gpu_service.moe.counters import LayerCosts, SelectionCounts
from gpu_service.moe.orchestration import Orchestration

FEW_ROWS = 63
"""Rows that are sent in one message whatever they cost; see planner.chunks."""


@dataclass(slots=True, kw_only=True)
class DirectWork:
    """One layer of a batch, sent and not joined."""

    layer: int
    hidden: torch.Tensor
    """[rows, hidden] on the device."""
    rows: torch.Tensor
    """The same on the CPU."""
    ids: torch.Tensor
    """[rows, k] int32 on the CPU."""
    weights: torch.Tensor
    """[rows, k] float32 on the CPU."""
    num_selections: int
    """Of experts that are not left out."""
    pending: PendingOutput | None
    """The answer to wait for; None if it could not be sent."""
    began_at: float
    """time.perf_counter()"""
    sent_at: float
    joined_at: float = 0.0
    first_row: int = 0
    """Of the batch: above 0 if a layer's rows are computed in several parts."""

    def discard(self) -> None:
        """Gives up what was begun and is not needed: nothing of it stays unread."""
        if self.pending is not None:
            with suppress(ExpertServiceError):  # the client has reported it
                self.pending.join()


class DirectLayers:
    """Sends layers and counts them. For the engine's thread."""

    def __init__(self, num_experts: Sequence[int], selections: SelectionCounts, costs: LayerCosts) -> None:
        """Counts nothing yet.

        Args:
            num_experts: By layer.
            selections: Where it counts what is chosen.
            costs: Where it counts what layers cost.
        """
        self._num_experts = num_experts
        self._selections = selections
        self._costs = costs
        self._joined: tuple[DirectWork, Orchestration] | None = None

    def begin(
        self,
        layer: int,
        hidden: torch.Tensor,
        *,
        on_host: Sequence[torch.Tensor],
        began_at: float,
        remote: RemoteExperts,
        orchestration: Orchestration,
    ) -> DirectWork:
        """Sends a layer.

        Args:
            layer: Index into the checkpoint's MoE layers.
            hidden: [rows, hidden] on the device.
            on_host: Hidden rows, expert ids [rows, k] int32 and routing weights [rows, k] float32, on the CPU.
            began_at: time.perf_counter()
            remote: Computes.
            orchestration: Knows what that may take.
        """
        rows, ids, weights = on_host
        timeout_seconds = _timeout_seconds(orchestration, layer, ids.numel())
        sent_at, pending = time.perf_counter(), None
        with suppress(ExpertServiceError):  # the client has reported it; `join` says that there is no answer
            pending = remote.submit(
                layer, rows, expert_ids=ids, routing_weights=weights, timeout_seconds=timeout_seconds
            )
        self.count_joined()
        selections = np.bincount(ids.numpy().reshape(-1) + 1, minlength=self._num_experts[layer] + 1)[1:]
        self._selections.add(layer, selections, ids.numel())
        return DirectWork(
            layer=layer,
            hidden=hidden,
            rows=rows,
            ids=ids,
            weights=weights,
            num_selections=int(selections.sum()),
            pending=pending,
            began_at=began_at,
            sent_at=sent_at,
        )

    def join(self, work: DirectWork, orchestration: Orchestration) -> torch.Tensor:
        """Waits for the sums, [rows, hidden] on the CPU, which the next layer's `begin` or `count_joined` counts.

        Raises:
            ExpertServiceError: There will be none.
        """
        if work.pending is None:
            raise ExpertServiceError("the message could not be sent")
        output = work.pending.join()
        work.joined_at = time.perf_counter()
        self._selections.add_route(work.layer, "remote", work.num_selections)
        self._joined = work, orchestration
        return output

    def count_joined(self) -> None:
        """Counts the layer that was joined last, and corrects the costs by its answer."""
        if self._joined is None:
            return
        work, orchestration = self._joined
        self._joined = None
        assert work.pending is not None, "it was joined"
        layer, seconds = work.layer, work.pending.compute_seconds
        self._costs.add_layer(layer, work.joined_at - work.began_at)
        predicted = orchestration.observe_remote(layer, work.ids.numpy(), work.pending)
        if predicted is None or seconds is None:
            return
        self._costs.add("cpu", layer, predicted_seconds=predicted.compute_seconds, actual_seconds=seconds)
        hop_seconds = work.joined_at - work.sent_at - seconds
        self._costs.add("hop", layer, predicted_seconds=predicted.hop_seconds, actual_seconds=hop_seconds)


def _timeout_seconds(orchestration: Orchestration, layer: int, assignments: int) -> float | None:
    """How long an answer may take if each assignment of a row reads an expert of its own, which is the most."""
    if orchestration.latency is None:
        return None
    costs = orchestration.latency.costs(layer)
    return orchestration.timeout_seconds(costs.round_trip + assignments * costs.remote[1])
