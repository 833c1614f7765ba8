"""The modules that replace a model's experts: they hand the experts' rows to the dispatcher."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from gpu_service.moe.direct import DirectWork, PreparedLayer
from gpu_service.moe.dispatcher import Dispatcher
from gpu_service.moe.pending import LayerWork
from gpu_service.moe.shared_experts import SharedExperts, same_rows


class MoeLayer(nn.Module):
    """Has the signature of transformers' experts classes and no parameters, so that loading reads no expert.

    transformers builds it from the model's configuration; `connect` then gives it the rest.
    """

    # some models' own initialisation reads these names; as plain tensors they are no parameters, and nothing is loaded
    gate_up_proj = up_proj = down_proj = torch.empty(0)

    def __init__(self, config: Any, *_: Any, **__: Any) -> None:
        super().__init__()
        self._layer = -1
        self._dispatcher: Dispatcher | None = None
        self._shared: SharedExperts | None = None
        self._early: LayerWork | DirectWork | None = None

    def connect(self, layer: int, dispatcher: Dispatcher, block: nn.Module | None) -> None:
        """Completes the module once the model is built.

        Args:
            layer: Index into the checkpoint's MoE layers.
            dispatcher: Computes the experts.
            block: The MoE block that this module is part of. Its shared experts are wrapped, to run meanwhile.
                None: they run after the routed ones.
        """
        self._layer = layer
        self._dispatcher = dispatcher
        shared = None if block is None else SharedExperts.install(block)
        if shared is not None:
            shared.connect(self._begin_early)
            object.__setattr__(self, "_shared", shared)  # past nn.Module, or the block's child became this one's too

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
        if self._dispatcher.capture is not None:
            meanwhile = None if self._shared is None else self._shared.ahead_of(rows)
            sums = self._dispatcher.capture.experts(self._layer, (rows, top_k_index, top_k_weights), meanwhile)
            return sums.view(hidden.shape)
        if early is not None and not same_rows(early.hidden, rows):
            early.discard()
            early = None
        limit = self._dispatcher.max_rows
        if limit is not None and len(rows) > limit:
            return self._in_parts(rows, top_k_index, top_k_weights).view(hidden.shape)
        work = self._begin(rows, top_k_index, top_k_weights) if early is None else early
        if self._shared is not None:
            self._shared.routed_experts_called(rows)
        return self._dispatcher.finish(work).view(hidden.shape)

    def prepare(self, rows: int, experts_per_row: int) -> PreparedLayer | None:
        """See Dispatcher.prepare."""
        assert self._dispatcher is not None, "connect() comes before prepare()"
        return self._dispatcher.prepare(self._layer, rows=rows, experts_per_row=experts_per_row)

    def sum_prepared(
        self,
        prepared: PreparedLayer,
        slot: int,
        *,
        addend: torch.Tensor,
        normed: torch.Tensor,
        ids: torch.Tensor,
        weights: torch.Tensor,
    ) -> torch.Tensor:
        """Adds the experts' sums to an addend, [rows, hidden] bfloat16 as the rows that were posted.

        Args:
            prepared: What `prepare` returned.
            slot: Where native code posted it; negative: it did not.
            addend: [rows, hidden] bfloat16.
            normed: The rows, likewise.
            ids: [rows, k] int32.
            weights: [rows, k] float32.
        """
        assert self._dispatcher is not None, "connect() comes before sum_prepared()"
        direct = self._dispatcher.direct
        return direct.finish_sum(direct.begin_prepared(prepared, slot, normed, ids=ids, weights=weights), addend)

    def _begin(
        self, rows: torch.Tensor, expert_ids: torch.Tensor, routing_weights: torch.Tensor
    ) -> LayerWork | DirectWork:
        assert self._dispatcher is not None
        return self._dispatcher.begin(self._layer, rows, expert_ids=expert_ids, routing_weights=routing_weights)

    def _in_parts(self, rows: torch.Tensor, expert_ids: torch.Tensor, routing_weights: torch.Tensor) -> torch.Tensor:
        """Does what `forward` does, for more rows than are computed at once."""
        assert self._dispatcher is not None
        limit = self._dispatcher.max_rows
        assert limit is not None
        output = torch.empty_like(rows)
        for begin in range(0, len(rows), limit):
            part = slice(begin, begin + limit)
            work = self._begin(rows[part], expert_ids[part], routing_weights[part])
            work.first_row = begin
            output[part] = self._dispatcher.finish(work)
        return output

    def _begin_early(self, hidden: torch.Tensor, expert_ids: torch.Tensor, routing_weights: torch.Tensor) -> None:
        assert self._dispatcher is not None
        limit = self._dispatcher.max_rows
        if self._dispatcher.capture is None and (limit is None or len(hidden) <= limit):
            self._early = self._begin(hidden, expert_ids, routing_weights)


class BlockExperts(MoeLayer):
    """A MoeLayer whose block itself computes something meanwhile."""

    @override
    def connect(self, layer: int, dispatcher: Dispatcher, block: nn.Module | None) -> None:
        self._layer = layer
        self._dispatcher = dispatcher

    def begin(
        self, rows: torch.Tensor, expert_ids: torch.Tensor, routing_weights: torch.Tensor
    ) -> Callable[[], torch.Tensor]:
        """Sends [rows, hidden] with [rows, k] ids and weights.

        Returns:
            What waits for the experts' sums, [rows, hidden]. It is to be called before anything else is sent.
        """
        assert self._dispatcher is not None, "connect() comes before begin()"
        if self._dispatcher.capture is not None:
            return self._dispatcher.capture.begin(self._layer, (rows, expert_ids, routing_weights))
        limit = self._dispatcher.max_rows
        if limit is not None and len(rows) > limit:
            return partial(self, rows, expert_ids, routing_weights)
        return partial(self._dispatcher.finish, self._begin(rows, expert_ids, routing_weights))
