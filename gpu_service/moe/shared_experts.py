"""Runs a model's shared experts while its routed ones are computed elsewhere, whichever the block calls first.

transformers' blocks come in two orders: router, experts, shared experts on the same rows (DeepSeek, GLM), or shared
experts, router, experts (Qwen2-MoE, Ernie). In both, the shared experts are to be computed between sending the rows and
waiting for their partial sums. The order is observed in the model's first forward, not looked up by name.
"""

import enum
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from gpu_service.moe.router import find_router, route, takes_rows_alone

_SHARED_NAMES = ("shared_experts", "shared_expert", "shared_mlp")
"""What transformers' blocks call their shared experts."""


class _Order(enum.Enum):
    """When a block calls its shared experts, relative to its routed ones."""

    UNSEEN = enum.auto()
    BEFORE = enum.auto()
    AFTER = enum.auto()
    APART = enum.auto()
    """On other rows, so that they cannot be moved."""


class SharedExperts(nn.Module):
    """Replaces the shared experts of a block."""

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
        """Wraps the shared experts of a block. Returns None if it has none that are called with rows alone."""
        for name in _SHARED_NAMES:
            inner = getattr(block, name, None)
            if takes_rows_alone(inner):
                shared = cls(inner, find_router(block))
                setattr(block, name, shared)
                return shared
        return None

    def connect(self, begin: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]) -> None:
        """Sets what sends (rows, expert ids, routing weights) before the block calls its routed experts."""
        self._begin = begin

    def routed_experts_called(self, hidden: torch.Tensor) -> None:
        """Computes the shared experts: the block has sent [rows, hidden] to its routed ones and not waited for them."""
        if self._order is _Order.UNSEEN:
            before = self._seen is not None and same_rows(self._seen, hidden)
            self._order = _Order.BEFORE if before else _Order.AFTER
            self._seen = None if before else hidden
        elif self._order is _Order.AFTER:
            self._ahead = (hidden, self.inner(hidden))

    def ahead_of(self, hidden: torch.Tensor) -> Callable[[], None] | None:
        """What `routed_experts_called` would compute now; None: nothing."""
        return partial(self.routed_experts_called, hidden) if self._order is _Order.AFTER else None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., hidden] -> [..., hidden]."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            if same_rows(ahead[0], hidden):
                return ahead[1].view(hidden.shape)
            self._order = _Order.APART
        if self._order is _Order.AFTER and self._seen is not None:
            if not same_rows(self._seen, hidden):  # the routed experts are given rows of their own
                self._order = _Order.APART
            self._seen = None
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
