"""Sends what a plan has the CPU expert service compute, in one message or several."""

import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from gpu_service.cpu_experts.backend import RemoteExperts
from gpu_service.errors import ExpertServiceError
from gpu_service.moe.orchestration import Orchestration
from gpu_service.moe.pending import ExpertMessage
from gpu_service.planning.planner import Plan


def send(
    layer: int,
    plan: Plan,
    *,
    hidden: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    orchestration: Orchestration,
    remote: RemoteExperts | None,
    route: str,
) -> list[ExpertMessage]:
    """Sends the rows of a layer that need the plan's remote experts.

    Args:
        layer: Index into the checkpoint's MoE layers.
        plan: Where each expert is computed.
        hidden: [rows, hidden] on the CPU.
        ids: [rows, k] int32 on the CPU.
        weights: [rows, k] float32 on the CPU.
        orchestration: Divides rows into messages, and knows how long an answer may take.
        remote: Computes; None: nothing does.
        route: What the messages' selections count for.

    Returns:
        The messages; those that could not be sent have nothing pending.
    """
    if not plan.remote:
        return []
    rows = None
    if plan.resident or plan.streamed:
        wanted = np.isin(ids.numpy(), plan.remote)
        rows = np.flatnonzero(wanted.any(axis=1))
        ids = torch.from_numpy(np.where(wanted, ids.numpy(), np.int32(-1))[rows])
        hidden, weights = hidden[rows], weights[rows]
    num_messages = orchestration.num_messages(layer, ids.numpy())
    timeout = orchestration.timeout_seconds(plan.remote_seconds)
    messages = []
    for part_rows, part_hidden, part_ids, part_weights in _parts(num_messages, rows, hidden, ids, weights):
        message = ExpertMessage(
            rows=part_rows,
            hidden=part_hidden,
            ids=part_ids,
            weights=part_weights,
            route=route,
            sent_at=time.perf_counter(),
        )
        if remote is not None:
            try:
                message.pending = remote.submit(
                    layer,
                    message.hidden,
                    expert_ids=message.ids,
                    routing_weights=message.weights,
                    timeout_seconds=timeout,
                )
            except ExpertServiceError:
                remote = None  # the client has reported it; the dispatcher computes the rows another way
        messages.append(message)
    return messages


def _parts(
    count: int,
    rows: npt.NDArray[np.int64] | None,
    hidden: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
) -> Iterator[tuple[npt.NDArray[np.int64] | None, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Splits what is sent for one layer into messages with about as many rows each.

    Args:
        count: How many messages.
        rows: Of the batch; None: all of them, in order.
        hidden: [rows, hidden].
        ids: [rows, k].
        weights: [rows, k].

    Yields:
        The same of each message.
    """
    if count == 1:  # as in every step of decoding, where slicing takes longer than sending
        yield rows, hidden, ids, weights
        return
    if rows is None:
        rows = np.arange(hidden.shape[0])
    for span in np.array_split(np.arange(hidden.shape[0]), count):
        part = slice(span[0], span[-1] + 1)
        yield rows[part], hidden[part], ids[part], weights[part]
