"""Resident experts of a few rows on the device: right with every schedule, in every dtype, and in few kernels."""

from collections.abc import Iterator

import pytest
import torch

from fiddler.checkpoint import Checkpoint
from fiddler.expert_math import layer_combination, layer_forward, layer_weights
from gpu_service.gpu_experts import grouped
from gpu_service.gpu_experts.expert_slots import ExpertSlots
from gpu_service.gpu_experts.grouped import GroupedExperts
from gpu_service.gpu_experts.uploads import Uploads
from tests.support import checkpoints, coded_layouts
from tests.support.imitated_cuda import DEVICE, SCHEDULES, Schedule, imitated_cuda

NUM_ROWS = 3
KERNELS_OF_ALL = 6
"""Of experts that are copied next to each other: the copy, two products, two between them, the sum."""
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture(scope="module", params=["float32", "bfloat16", "int8"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoint]:
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "int8":
        yield Checkpoint.open(coded_layouts.write("separate", "int8", directory))
    else:
        dtype = getattr(torch, request.param)
        yield Checkpoint.open(checkpoints.write("mixtral", directory, dtype=dtype))


@pytest.mark.parametrize("is_apart", [False, True], ids=["side by side", "where they are"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_sums_are_those_of_one_expert_after_the_other(
    checkpoint: Checkpoint, schedule: Schedule, is_apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_apart:
        monkeypatch.setattr(grouped, "MAX_EXPERT_BYTES", 0)
    layer = checkpoint.layers[1]
    dtype = torch.bfloat16 if checkpoint.is_coded else checkpoint.expert_dtype
    combine = layer_combination(layer.activation)
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(NUM_ROWS, layer.hidden_size, generator=generator).to(dtype)
    ids = torch.randint(0, layer.num_experts, (NUM_ROWS, 2), generator=generator, dtype=torch.int32)
    routing = torch.rand(NUM_ROWS, 2, generator=generator)
    expected = layer_forward(layer_weights(checkpoint, layer), combine, hidden, ids, routing)
    with imitated_cuda(schedule, seed=5) as machine:
        slots = ExpertSlots(checkpoint, DEVICE, layer.num_experts)
        slots.load((1, expert) for expert in range(layer.num_experts))
        held = {expert: slots.holding((1, expert)) for expert in sorted(set(ids.flatten().tolist()))}
        experts, there = GroupedExperts(combine, Uploads(DEVICE)), hidden.to(DEVICE)
        machine.counts.clear()
        sums = experts.sums(there, held, expert_ids=ids.numpy(), routing_weights=routing.numpy())
        kernels, waits = machine.counts.num_kernels, machine.counts.num_waits
        actual = sums.cpu()
        slots.close()
    assert actual.dtype is torch.float32
    assert (actual - expected.float()).abs().max() < TOLERANCES[dtype] * expected.float().abs().max()
    assert waits == 0
    if not checkpoint.is_coded:
        assert len(held) > 2
        assert kernels <= (2 * len(held) + 3 if is_apart else KERNELS_OF_ALL), machine.counts.kernels
