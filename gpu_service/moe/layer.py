"""What stands in a model where its experts were: hands their rows to the dispatcher."""

from typing import Any

import torch
from torch import nn

from gpu_service.moe.dispatcher import Dispatcher
from gpu_service.moe.pending import LayerWork
from gpu_service.moe.shared_experts import SharedExperts, same_rows


class MoeLayer(nn.Module):
    """Has the signature of transformers' experts classes and no parameters, so that loading reads no expert.

    `connect` gives it what it needs once the model is built; transformers builds it from the model's configuration.
    """

    # some models' own initialisation touches these; they are no parameters, so that nothing is loaded into them
    gate_up_proj = up_proj = down_proj = torch.empty(0)

    def __init__(self, config: Any, *_: Any, **__: Any) -> None:
        super().__init__()
        self._layer = -1
        self._dispatcher: Dispatcher | None = None
        self._shared: SharedExperts | None = None
        self._early: LayerWork | None = None

    def connect(self, layer: int, dispatcher: Dispatcher, block: nn.Module) -> None:
        """Says which MoE layer this is, who computes for it, and which block of the model it lies in."""
        self._layer = layer
        self._dispatcher = dispatcher
        shared = SharedExperts.install(block)
        if shared is not None:
            shared.connect(self._begin_early)
            object.__setattr__(self, "_shared", shared)  # it is the block's child and must not become this one's, too

    def forward(self, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
        """Sums routing weight x expert(row) over each row's experts.

        Args:
            hidden: [..., hidden].
            top_k_index: [rows, k] expert ids; -1 is left out.
            top_k_weights: [rows, k] routing weights.
        """
        assert self._dispatcher is not None, "connect() comes before forward()"
        early, self._early = self._early, None
        rows = hidden.reshape(-1, hidden.shape[-1])
        limit = self._dispatcher.max_rows
        if limit is not None and len(rows) > limit:
            return self._in_parts(rows, top_k_index, top_k_weights, limit).view(hidden.shape)
        work = early
        if work is None or not same_rows(work.hidden, rows):
            work = self._dispatcher.begin(self._layer, rows, top_k_index, top_k_weights)
        if self._shared is not None:
            self._shared.routed_experts_called(rows)
        return self._dispatcher.finish(work).view(hidden.shape)

    def _in_parts(
        self, rows: torch.Tensor, expert_ids: torch.Tensor, routing_weights: torch.Tensor, limit: int
    ) -> torch.Tensor:
        """The same for more rows than are computed at once."""
        assert self._dispatcher is not None
        output = torch.empty_like(rows)
        for begin in range(0, len(rows), limit):
            part = slice(begin, begin + limit)
            work = self._dispatcher.begin(self._layer, rows[part], expert_ids[part], routing_weights[part])
            output[part] = self._dispatcher.finish(work)
        return output

    def _begin_early(self, hidden: torch.Tensor, expert_ids: torch.Tensor, routing_weights: torch.Tensor) -> None:
        assert self._dispatcher is not None
        if self._dispatcher.max_rows is not None and len(hidden) > self._dispatcher.max_rows:
            return
        self._early = self._dispatcher.begin(self._layer, hidden, expert_ids, routing_weights)


class BlockExperts(MoeLayer):
    """A MoeLayer whose block says itself what is computed meanwhile."""

    def connect(self, layer: int, dispatcher: Dispatcher, block: nn.Module) -> None:
        """See MoeLayer; it leaves the block as it is."""
        self._layer = layer
        self._dispatcher = dispatcher

    def begin(self, rows: torch.Tensor, expert_ids: torch.Tensor, routing_weights: torch.Tensor) -> LayerWork | None:
        """Sends [rows, hidden] with [rows, k] ids and weights; None where they are too many for one message.

        `finish` is to be called next, with the same arguments.
        """
        assert self._dispatcher is not None, "connect() comes before forward()"
        limit = self._dispatcher.max_rows
        if limit is not None and len(rows) > limit:
            return None
        return self._dispatcher.begin(self._layer, rows, expert_ids, routing_weights)

    def finish(
        self, work: LayerWork | None, rows: torch.Tensor, expert_ids: torch.Tensor, routing_weights: torch.Tensor
    ) -> torch.Tensor:
        """Waits for what `begin` sent: [rows, hidden]."""
        assert self._dispatcher is not None, "connect() comes before forward()"
        return self(rows, expert_ids, routing_weights) if work is None else self._dispatcher.finish(work)
