"""The experts of a block that is ours: sending rows and waiting for their sums are two calls."""

import torch
from torch import nn

from gpu_service.dispatch import Dispatcher
from gpu_service.moe_layer import MoeLayer
from gpu_service.work import Work


class BlockExperts(MoeLayer):
    """A MoeLayer whose block says itself what is computed meanwhile."""

    def connect(self, layer: int, dispatcher: Dispatcher, block: nn.Module) -> None:
        """See MoeLayer; it leaves the block as it is."""
        self._layer = layer
        self._dispatcher = dispatcher

    def begin(self, rows: torch.Tensor, expert_ids: torch.Tensor, routing_weights: torch.Tensor) -> Work | None:
        """Sends [rows, hidden] with [rows, k] ids and weights; None where they are too many for one message.

        `finish` is to be called next, with the same arguments.
        """
        assert self._dispatcher is not None, "connect() comes before forward()"
        limit = self._dispatcher.max_rows
        if limit is not None and len(rows) > limit:
            return None
        return self._dispatcher.begin(self._layer, rows, expert_ids, routing_weights)

    def finish(
        self, work: Work | None, rows: torch.Tensor, expert_ids: torch.Tensor, routing_weights: torch.Tensor
    ) -> torch.Tensor:
        """Waits for what `begin` sent: [rows, hidden]."""
        assert self._dispatcher is not None, "connect() comes before forward()"
        return self(rows, expert_ids, routing_weights) if work is None else self._dispatcher.finish(work)
