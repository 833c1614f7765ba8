"""A router may name one expert twice in a row, or none: sums are right by every route, whatever the ids."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cpu_expert_service.kernel import PyTorchKernel
from fiddler.checkpoint import Checkpoint
from fiddler.expert_math import expert_forward, layer_combination, layer_weights
from gpu_service.gpu_experts.expert_slots import ExpertSlots
from gpu_service.moe.dispatcher import Dispatcher
from gpu_service.moe.orchestration import MeasuredRemote
from gpu_service.moe.pending import LayerWork
from gpu_service.planning.latency_model import LatencyModel, Measurements
from tests.support.families.engine import RunnerExperts, best_kernel
from tests.support.routes import WAYS, use_route

CPU = torch.device("cpu")
EXPERTS, ROWS, K = 8, 6, 3
ROUTES = ("remote without slots", *(name for name in WAYS if name != "prefetched"))


@pytest.fixture(scope="module")
def checkpoint(tiny: Path) -> Checkpoint:
    return Checkpoint.open(tiny)


@pytest.fixture(scope="module", params=ROUTES)
def dispatcher(request: pytest.FixtureRequest, checkpoint: Checkpoint) -> Iterator[Dispatcher]:
    """With costs that are known for no more rows than there are."""
    kernel = best_kernel() if request.param == "all remote" else PyTorchKernel(1)
    dispatcher = Dispatcher(checkpoint, CPU, RunnerExperts(checkpoint, kernel))
    if request.param == ROUTES[0]:
        measured = Measurements(1, cpu=((1, 0.1),), hop=((1, 0.1),), gpu=((1, 0.1),), transfer=(0.1,))
        dispatcher.use(MeasuredRemote(LatencyModel(measured, [1] * len(checkpoint.layers), ROWS), 60.0))
        yield dispatcher
        return
    way = WAYS[request.param]
    slots = ExpertSlots(checkpoint, CPU, min(way.capacity, EXPERTS * len(checkpoint.layers)))
    use_route(dispatcher, checkpoint, slots, way.route, max_rows=ROWS)
    yield dispatcher
    slots.close()


_rows = st.lists(st.lists(st.integers(-1, 3) | st.integers(-1, EXPERTS - 1), min_size=K, max_size=K), max_size=ROWS)


@settings(max_examples=25)
@given(rows=_rows.filter(len), seed=st.integers(0, 2**16))
def test_sums_are_right_whatever_the_ids(
    dispatcher: Dispatcher, checkpoint: Checkpoint, rows: list[list[int]], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden, ids = torch.randn(len(rows), 64, generator=generator), torch.tensor(rows)
    weights = torch.rand(len(rows), K, generator=generator)
    work = dispatcher.begin(0, hidden, expert_ids=ids, routing_weights=weights)
    torch.testing.assert_close(
        dispatcher.finish(work), _expected(checkpoint, hidden, rows=rows, weights=weights), atol=1e-4, rtol=1e-4
    )


def test_a_service_that_is_lost_in_the_middle_leaves_the_sums_right(checkpoint: Checkpoint) -> None:
    dispatcher = Dispatcher(checkpoint, CPU, RunnerExperts(checkpoint, PyTorchKernel(1)))
    slots = ExpertSlots(checkpoint, CPU, 2)
    use_route(dispatcher, checkpoint, slots, dataclasses.replace(WAYS["all remote"].route), max_rows=2)
    rows = [[5, 5, 5], [5, 5, -1]]
    hidden, weights = torch.randn(2, 64, generator=torch.Generator().manual_seed(0)), torch.ones(2, K)
    work = dispatcher.begin(0, hidden, expert_ids=torch.tensor(rows), routing_weights=weights)
    assert isinstance(work, LayerWork)
    work.messages[0].pending = None
    torch.testing.assert_close(
        dispatcher.finish(work), _expected(checkpoint, hidden, rows=rows, weights=weights), atol=1e-4, rtol=1e-4
    )
    slots.close()


def _expected(
    checkpoint: Checkpoint, hidden: torch.Tensor, *, rows: list[list[int]], weights: torch.Tensor
) -> torch.Tensor:
    layer = layer_weights(checkpoint, checkpoint.layers[0])
    combination, total = layer_combination(checkpoint.layers[0].activation), torch.zeros_like(hidden)
    for row, experts in enumerate(rows):
        for place, expert in enumerate(experts):
            if expert >= 0:
                output = expert_forward(layer.experts[expert], combination, hidden[row : row + 1])[0]
                total[row] += weights[row, place] * output
    return total
