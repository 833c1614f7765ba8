"""Layers of few rows of which the CPU expert service computes everything: sent at once, and counted after the step.

Such a layer needs no plan. In a decode step of a model with small experts, planning and counting would take as long as
a third of the experts: what a layer's weights pass through are the caches, so that code and counts of every layer are
read from memory anew. After the step, all layers are counted in a row.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch

from gpu_service.cpu_experts.backend import (
    PendingOutput,
    PendingSum,
    PreparedMessage,
    PreparingExperts,
    RemoteExperts,
)
from gpu_service.errors import ExpertServiceError
from gpu_service.moe.answers import Answers
from gpu_service.moe.counters import LayerCosts, SelectionCounts
from gpu_service.moe.orchestration import Orchestration
from gpu_service.moe.pending import ExpertMessage

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
    pending: PendingOutput | None
    """The answer to wait for; None if it could not be sent."""
    orchestration: Orchestration
    began_at: float
    """time.perf_counter()"""
    sent_at: float
    first_row: int = 0
    """Of the batch: above 0 if a layer's rows are computed in several parts."""

    @property
    def message(self) -> ExpertMessage:
        """What was sent."""
        return ExpertMessage(
            rows=None, hidden=self.rows, ids=self.ids, weights=self.weights, route="remote", sent_at=self.sent_at
        )

    def discard(self) -> None:
        """Gives up what was begun and is not needed: nothing of it stays unread."""
        if self.pending is not None:
            with suppress(ExpertServiceError):  # the client has reported it
                self.pending.join()


class _Answered(NamedTuple):
    """What is counted of an answer."""

    layer: int
    ids: torch.Tensor
    orchestration: Orchestration
    began_at: float
    sent_at: float
    joined_at: float
    compute_seconds: float | None
    count_message: Callable[[], None] | None
    """None: it is counted."""


@dataclass(frozen=True, slots=True)
class PreparedLayer:
    """A layer of a batch whose rows are to be computed and posted by native code."""

    layer: int
    message: PreparedMessage
    orchestration: Orchestration


class DirectLayers:
    """Sends layers and counts them. For the engine's thread."""

    def __init__(
        self, num_experts: Sequence[int], selections: SelectionCounts, costs: LayerCosts, answers: Answers
    ) -> None:
        """Counts nothing yet.

        Args:
            num_experts: By layer.
            selections: Where it counts what is chosen.
            costs: Where it counts what layers cost.
            answers: Checks what comes back, and computes what does not.
        """
        self._num_experts = num_experts
        self._selections = selections
        self._costs = costs
        self._answers = answers
        # without the rows: those of all layers of a step together may be many
        self._chosen: list[tuple[int, torch.Tensor]] = []
        self._answered: list[_Answered] = []

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
        """Sends a layer whose rows are computed.

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
        return self._begun(
            DirectWork(
                layer=layer,
                hidden=hidden,
                rows=rows,
                # counted after the step, and what was copied from a device lies in memory that the next layer uses
                ids=ids if hidden.device.type == "cpu" else ids.clone(),
                weights=weights,
                pending=pending,
                orchestration=orchestration,
                began_at=began_at,
                sent_at=sent_at,
            )
        )

    def prepare(
        self, layer: int, *, rows: int, experts_per_row: int, remote: PreparingExperts, orchestration: Orchestration
    ) -> PreparedLayer | None:
        """Prepares a layer whose rows native code computes and posts.

        Args:
            layer: Index into the checkpoint's MoE layers.
            rows: How many.
            experts_per_row: How many each.
            remote: Computes.
            orchestration: Knows what that may take.

        Returns:
            None if native code cannot post them.
        """
        timeout_seconds = _timeout_seconds(orchestration, layer, rows * experts_per_row)
        with suppress(ExpertServiceError):  # the client has reported it
            message = remote.prepare(layer, rows=rows, experts_per_row=experts_per_row, timeout_seconds=timeout_seconds)
            if message is not None:
                return PreparedLayer(layer, message, orchestration)
        return None

    def begin_prepared(
        self, prepared: PreparedLayer, slot: int, normed: torch.Tensor, *, ids: torch.Tensor, weights: torch.Tensor
    ) -> DirectWork:
        """Takes note of what native code has posted.

        Args:
            prepared: What `prepare` returned.
            slot: Where it was posted; negative: it was not, and is sent now.
            normed: [rows, hidden] bfloat16 on the CPU.
            ids: [rows, k] int32 on the CPU.
            weights: [rows, k] float32 on the CPU.
        """
        sent_at, pending = time.perf_counter(), None
        with suppress(ExpertServiceError):  # likewise
            pending = prepared.message.sent(slot, normed, expert_ids=ids, routing_weights=weights)
        return self._begun(
            DirectWork(
                layer=prepared.layer,
                hidden=normed,
                rows=normed,
                ids=ids,
                weights=weights,
                pending=pending,
                orchestration=prepared.orchestration,
                began_at=sent_at,
                sent_at=sent_at,
            )
        )

    def finish(self, work: DirectWork) -> torch.Tensor:
        """Waits for the sums, [rows, hidden] on the CPU, or computes them here.

        Raises:
            ExpertServiceError: The CPU expert service is lost, and nothing else can compute its experts.
        """
        if work.pending is not None:
            with suppress(ExpertServiceError):  # the client has reported it; even if it is back by now, no answer comes
                output = work.pending.join()
                self._note_answer(work, work.pending, None)
                return self._answers.checked(output, work.message, work.first_row)
        return self._computed_here(work)

    def finish_sum(self, work: DirectWork, addend: torch.Tensor) -> torch.Tensor:
        """Does what `finish` does for a prepared layer, and adds: [rows, hidden] bfloat16, as the addend is.

        Raises:
            ExpertServiceError: The CPU expert service is lost, and nothing else can compute its experts.
        """
        if work.pending is not None:
            with suppress(ExpertServiceError):  # likewise
                pending = cast("PendingSum", work.pending)
                output, is_sum = pending.join_sum(addend)
                self._note_answer(work, pending, pending.counting())
                return output if is_sum else addend + self._answers.checked(output, work.message, work.first_row)
        return addend + self._computed_here(work)

    def count(self) -> None:
        """Counts the layers that were begun since the last time, and corrects the costs by their answers."""
        chosen, self._chosen = self._chosen, []
        answered, self._answered = self._answered, []
        for layer, ids in chosen:
            selections = np.bincount(ids.numpy().reshape(-1) + 1, minlength=self._num_experts[layer] + 1)[1:]
            self._selections.add(layer, selections, ids.numel())
        for answer in answered:
            self._count_answer(answer)

    def _begun(self, work: DirectWork) -> DirectWork:
        self._chosen.append((work.layer, work.ids))
        return work

    def _note_answer(self, work: DirectWork, pending: PendingOutput, count_message: Callable[[], None] | None) -> None:
        self._answered.append(
            _Answered(
                work.layer,
                work.ids,
                work.orchestration,
                work.began_at,
                work.sent_at,
                time.perf_counter(),
                pending.compute_seconds,
                count_message,
            )
        )

    def _computed_here(self, work: DirectWork) -> torch.Tensor:
        computed = self._answers.computed_here(work.layer, work.message, work.orchestration).to(work.hidden.dtype)
        self._costs.add_layer(work.layer, time.perf_counter() - work.began_at)
        return computed

    def _count_answer(self, answer: _Answered) -> None:
        if answer.count_message is not None:
            answer.count_message()
        layer, ids, seconds = answer.layer, answer.ids.numpy(), answer.compute_seconds
        self._costs.add_layer(layer, answer.joined_at - answer.began_at)
        self._selections.add_route(layer, "remote", int(np.count_nonzero(ids >= 0)))
        predicted = answer.orchestration.observe_remote(layer, ids, seconds)
        if predicted is None or seconds is None:
            return
        self._costs.add("cpu", layer, predicted_seconds=predicted.compute_seconds, actual_seconds=seconds)
        hop_seconds = answer.joined_at - answer.sent_at - seconds
        self._costs.add("hop", layer, predicted_seconds=predicted.hop_seconds, actual_seconds=hop_seconds)


def _timeout_seconds(orchestration: Orchestration, layer: int, assignments: int) -> float | None:
    """How long an answer may take if each assignment of a row reads an expert of its own, which is the most."""
    if orchestration.latency is None:
        return None
    costs = orchestration.latency.costs(layer)
    return orchestration.timeout_seconds(costs.round_trip + assignments * costs.remote[1])
