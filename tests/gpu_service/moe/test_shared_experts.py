"""The order of events around a block's shared experts, and that the sums are the same."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from gpu_service.moe.router import find_router, route
from gpu_service.moe.shared_experts import SharedExperts


class _Router(nn.Module):
    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rows = hidden.reshape(-1, hidden.shape[-1])
        return rows, torch.full((rows.shape[0], 1), 0.5), torch.zeros(rows.shape[0], 1, dtype=torch.int64)


class _Shared(nn.Module):
    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self._log = log

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self._log.append("shared")
        return hidden * 2


class _Routed(nn.Module):
    """Behaves as MoeLayer: joins what was sent early, and sends and joins anything else."""

    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self._log = log
        self._sent: torch.Tensor | None = None
        self.shared: Callable[[torch.Tensor], None] = lambda hidden: None

    def send(self, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> None:
        self._log.append("send")
        self._sent = hidden * weights

    def forward(self, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        if self._sent is None:
            self.send(hidden, ids, weights)
        self.shared(hidden)
        self._log.append("join")
        assert self._sent is not None
        output, self._sent = self._sent, None
        return output


class _Block(nn.Module):
    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self.gate = _Router()
        self.experts = _Routed(log)
        self.shared_experts = _Shared(log)


class _SharedLast(_Block):
    """DeepSeek's order."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        _, weights, ids = self.gate(hidden)
        routed = self.experts(hidden.view(-1, hidden.shape[-1]), ids, weights).view(hidden.shape)
        output: torch.Tensor = routed + self.shared_experts(hidden)
        return output


class _SharedFirst(_Block):
    """Qwen2-MoE's order."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        rows = hidden.view(-1, hidden.shape[-1])
        shared = self.shared_experts(rows)
        _, weights, ids = self.gate(rows)
        output: torch.Tensor = (self.experts(rows, ids, weights) + shared).view(hidden.shape)
        return output


class _SharedApart(_Block):
    """On other rows than the routed ones."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        _, weights, ids = self.gate(hidden)
        routed = self.experts(hidden.view(-1, hidden.shape[-1]), ids, weights).view(hidden.shape)
        output: torch.Tensor = routed + self.shared_experts(hidden + 1)
        return output


def _install(block: _Block) -> None:
    shared = SharedExperts.install(block)
    assert shared is not None
    shared.connect(block.experts.send)
    block.experts.shared = shared.routed_experts_called


@pytest.mark.parametrize("kind", [_SharedLast, _SharedFirst])
def test_shared_experts_run_between_send_and_join(kind: type[_Block]) -> None:
    log: list[str] = []
    block = kind(log)
    _install(block)
    first, hidden = torch.randn(2, 3, 4), torch.randn(1, 5, 4)
    assert torch.equal(block(first), first * 2.5), "the first forward, in which the order is observed"
    log.clear()
    assert torch.equal(block(hidden), hidden * 2.5)
    assert log == ["send", "shared", "join"]


def test_shared_experts_on_other_rows_are_left_where_they_are() -> None:
    log: list[str] = []
    block = _SharedApart(log)
    _install(block)
    hidden = torch.randn(2, 3, 4)
    for _ in range(3):
        log.clear()
        torch.testing.assert_close(block(hidden), hidden * 0.5 + (hidden + 1) * 2)
    assert log == ["send", "join", "shared"]


def test_a_block_without_shared_experts_is_left_alone() -> None:
    assert SharedExperts.install(nn.Linear(2, 2)) is None
    assert find_router(nn.Linear(2, 2)) is None


def test_only_a_router_of_the_known_form_is_asked_ahead() -> None:
    hidden = torch.randn(3, 4)
    routed = route(_Router(), hidden)
    assert routed is not None
    assert routed[0].dtype is torch.int64
    assert routed[1].shape == (3, 1)
    assert route(nn.Linear(4, 2), hidden) is None
