"""The modules in place of a model's experts: all rows at once, in parts, and with something computed meanwhile."""

from pathlib import Path

import pytest
import torch
from torch import nn

from fiddler.checkpoint import Checkpoint
from gpu_service.cpu_experts.in_process import InProcessExperts
from gpu_service.gpu_experts.expert_slots import ExpertSlots
from gpu_service.moe.dispatcher import Dispatcher
from gpu_service.moe.layer import BlockExperts, MoeLayer
from gpu_service.moe.pending import LayerWork
from tests.support.routes import FAST, SLOW, Route, use_route

CPU = torch.device("cpu")
ROWS = 7


@pytest.fixture(scope="module")
def checkpoint(tiny: Path) -> Checkpoint:
    return Checkpoint.open(tiny)


@pytest.fixture
def dispatcher(checkpoint: Checkpoint) -> Dispatcher:
    return Dispatcher(checkpoint, CPU, InProcessExperts(checkpoint))


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden rows, expert ids [rows, 2] and routing weights."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.stack([torch.randperm(8, generator=generator)[:2] for _ in range(ROWS)])
    return torch.randn(ROWS, 64, generator=generator), ids, torch.rand(ROWS, 2, generator=generator)


@pytest.fixture
def expected(checkpoint: Checkpoint, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
    hidden, ids, weights = batch
    experts = InProcessExperts(checkpoint)
    return experts.submit(1, hidden, expert_ids=ids.to(torch.int32), routing_weights=weights).join()


@pytest.mark.parametrize(("max_rows", "num_parts"), [(None, 1), (ROWS, 1), (3, 3)])
def test_rows_are_computed_in_parts_of_the_most_that_are_sent_at_once(
    dispatcher: Dispatcher,
    batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    expected: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
    max_rows: int | None,
    num_parts: int,
) -> None:
    layer = MoeLayer(None)
    layer.connect(1, dispatcher, nn.Module())
    dispatcher.max_rows = max_rows
    joined: list[int] = []
    finish = dispatcher.finish

    def counted(work: LayerWork) -> torch.Tensor:
        joined.append(len(work.hidden))
        return finish(work)

    monkeypatch.setattr(dispatcher, "finish", counted)
    torch.testing.assert_close(layer(*batch), expected)
    assert len(joined) == num_parts
    assert sum(joined) == ROWS


@pytest.mark.parametrize("max_rows", [None, ROWS, 3])
def test_a_block_waits_for_its_experts_when_it_wants(
    dispatcher: Dispatcher,
    batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    expected: torch.Tensor,
    max_rows: int | None,
) -> None:
    experts = BlockExperts(None)
    experts.connect(1, dispatcher, nn.Module())
    dispatcher.max_rows = max_rows
    wait = experts.begin(*batch)
    torch.testing.assert_close(wait(), expected)


def test_work_that_was_begun_early_for_other_rows_is_given_up(
    checkpoint: Checkpoint, dispatcher: Dispatcher, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    slots = ExpertSlots(checkpoint, CPU, 0)
    use_route(dispatcher, checkpoint, slots, Route(SLOW, FAST))
    layer = MoeLayer(None)
    layer.connect(1, dispatcher, nn.Module())
    hidden, ids, weights = batch
    with torch.inference_mode():
        layer._begin_early(hidden.clone(), ids, weights)
        layer(hidden, ids, weights)
    assert slots._copies._copies == {}, "a copy has a streaming slot for good"
    slots.close()
