"""Runs a model's shared experts while its routed ones are computed elsewhere, whichever the block calls first.

transformers' blocks come in two orders: router, experts, shared experts on the same rows (DeepSeek, GLM), or shared
experts, router, experts (Qwen2-MoE, Ernie). Either way the shared ones are to be computed between the sending of the
rows and the wait for their partial sums. The order is not known by name but seen in the model's first forward.
"""

import enum
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gpu_service.moe.router import _takes_rows, find_router, route

Router = Callable[[torch.Tensor], Any]
_SHARED_NAMES = ("shared_experts", "shared_expert", "shared_mlp")


class _Order(enum.Enum):
    """When a block calls its shared experts, seen from its routed ones."""

    UNSEEN = enum.auto()
    BEFORE = enum.auto()
    AFTER = enum.auto()
    APART = enum.auto()
    """On other rows: they cannot be moved."""


class SharedExperts(nn.Module):
    """Stands in a block where its shared experts were."""

    def __init__(self, inner: nn.Module, router: nn.Module | None) -> None:
        super().__init__()
        self.inner = inner
        self._router = router
        self._begin: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None] | None = None
        self._order = _Order.UNSEEN
        self._seen: torch.Tensor | None = None
        self._ahead: tuple[torch.Tensor, torch.Tensor] | None = None

    @classmethod
    def install(cls, block: nn.Module) -> "SharedExperts | None":
        """Puts one into a block that has shared experts."""
        for name in _SHARED_NAMES:
            inner = getattr(block, name, None)
            if isinstance(inner, nn.Module) and _takes_rows(inner):
                shared = cls(inner, find_router(block))
                setattr(block, name, shared)
                return shared
        return None

    def connect(self, begin: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]) -> None:
        """Says what sends (rows, expert ids, routing weights) before the block calls its routed experts."""
        self._begin = begin

    def routed_experts_called(self, hidden: torch.Tensor) -> None:
        """The block has sent [rows, hidden] to its routed experts and not waited: computes the shared ones now."""
        if self._order is _Order.UNSEEN:
            before = self._seen is not None and same_rows(self._seen, hidden)
            self._order = _Order.BEFORE if before else _Order.AFTER
            self._seen = None
        elif self._order is _Order.AFTER:
            self._ahead = (hidden, self.inner(hidden))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., hidden] -> [..., hidden]."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            if same_rows(ahead[0], hidden):
                return ahead[1].view(hidden.shape)
            self._order = _Order.APART
        if self._order is _Order.UNSEEN:
            self._seen = hidden
        elif self._order is _Order.BEFORE:
            self._send_ahead(hidden)
        output: torch.Tensor = self.inner(hidden)
        return output

    def _send_ahead(self, hidden: torch.Tensor) -> None:
        if self._begin is None or self._router is None:
            return
        rows = hidden.reshape(-1, hidden.shape[-1])
        if routed := route(self._router, rows):
            self._begin(rows, *routed)


def same_rows(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether both are views of the same rows."""
    return first.data_ptr() == second.data_ptr() and first.numel() == second.numel()
