"""Resident experts of a few rows on the device: right with every schedule, in every dtype, and in few kernels."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import structlog
import torch

from fiddler.checkpoint import Checkpoint
from fiddler.expert_math import layer_combination, layer_forward, layer_weights
from gpu_service.gpu_experts import grouped, in_place
from gpu_service.gpu_experts.expert_slots import ExpertSlots
from gpu_service.gpu_experts.grouped import GroupedExperts
from gpu_service.gpu_experts.in_place import InPlace
from gpu_service.gpu_experts.uploads import Uploads
from tests.support import checkpoints, coded_layouts
from tests.support.imitated_cuda import DEVICE, SCHEDULES, Schedule, imitated_cuda

NUM_ROWS = 3
KERNELS_OF_ALL = 6
"""Of experts that are copied next to each other: the copy, two products, two between them, the sum. Of those that a
kernel computes where they are: three products at most, two kernels between them, the sum."""
WAYS = ("side by side", "one after the other", "in place")
IS_TRITON_THERE = importlib.util.find_spec("triton") is not None
PRODUCTS = in_place.products
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


class Subject(NamedTuple):
    kernel: InPlace
    sums: Callable[[InPlace | None], torch.Tensor]


@pytest.fixture(scope="module", params=["float32", "bfloat16", "int8"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoint]:
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "int8":
        yield Checkpoint.open(coded_layouts.write("separate", "int8", directory))
    else:
        dtype = getattr(torch, request.param)
        yield Checkpoint.open(checkpoints.write("mixtral", directory, dtype=dtype))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_sums_are_those_of_one_expert_after_the_other(
    checkpoint: Checkpoint, schedule: Schedule, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "in place" and not IS_TRITON_THERE:
        pytest.skip("Triton is not installed: there is none for this platform")
    if way != "side by side":
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
        kernel = InPlace(DEVICE) if way == "in place" else None
        experts, there = GroupedExperts(combine, Uploads(DEVICE), kernel), hidden.to(DEVICE)
        if kernel is not None:  # the first sums are compared
            experts.sums(there, held, expert_ids=ids.numpy(), routing_weights=routing.numpy())
            assert kernel.is_checked(in_place.form_of(next(iter(held.values())), there))
        machine.counts.clear()
        sums = experts.sums(there, held, expert_ids=ids.numpy(), routing_weights=routing.numpy())
        kernels, waits = machine.counts.num_kernels, machine.counts.num_waits
        actual = sums.cpu()
        slots.close()
    assert actual.dtype is torch.float32
    assert (actual - expected.float()).abs().max() < TOLERANCES[dtype] * expected.float().abs().max()
    assert waits == 0
    if way == "in place" or not checkpoint.is_coded:
        assert len(held) > 2
        most = 2 * len(held) + 3 if way == "one after the other" else KERNELS_OF_ALL
        assert kernels <= most, machine.counts.kernels


@pytest.fixture
def in_place_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Subject]:
    """Experts that are computed in place for the first time."""
    pytest.importorskip("triton", reason="Triton is not installed: there is none for this platform")
    monkeypatch.setattr(grouped, "MAX_EXPERT_BYTES", 0)
    checkpoint = Checkpoint.open(checkpoints.write("mixtral", tmp_path))
    with imitated_cuda("late"):
        slots = ExpertSlots(checkpoint, DEVICE, 2)
        slots.load([(0, 0), (0, 1)])
        held = {expert: slots.holding((0, expert)) for expert in (0, 1)}
        combine, kernel = layer_combination(checkpoint.layers[0].activation), InPlace(DEVICE)
        hidden = torch.randn(2, checkpoint.layers[0].hidden_size, generator=torch.Generator().manual_seed(1))
        ids, routing = np.array([[0, 1], [1, 0]], dtype=np.int32), np.full((2, 2), 0.5, dtype=np.float32)
        there, uploads = hidden.to(DEVICE), Uploads(DEVICE)

        def sums(kernel: InPlace | None) -> torch.Tensor:
            experts = GroupedExperts(combine, uploads, kernel)
            return experts.sums(there, held, expert_ids=ids, routing_weights=routing).cpu()

        yield Subject(kernel, sums)
        slots.close()


def _fails(*arguments: object, **more: object) -> torch.Tensor:
    raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")


def _is_wrong(*arguments: Any, **more: Any) -> torch.Tensor:
    return PRODUCTS(*arguments, **more) * 1.01


@pytest.mark.parametrize(("planted", "reason"), [(_fails, "C compiler"), (_is_wrong, "sums differ by 0.03")])
def test_a_kernel_that_fails_or_gives_other_sums_is_left_out(
    in_place_case: Subject, planted: Callable[..., torch.Tensor], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, sums = in_place_case
    monkeypatch.setattr(in_place, "products", planted)
    with structlog.testing.capture_logs() as logs:
        torch.testing.assert_close(sums(kernel), sums(None))
        torch.testing.assert_close(sums(kernel), sums(None))
    assert not kernel.is_used
    assert [each["event"] for each in logs] == ["experts are not computed in place"]
    assert reason in logs[0]["reason"]


def test_memory_that_runs_out_does_not_leave_the_kernel_out(
    in_place_case: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, sums = in_place_case
    with monkeypatch.context() as patch:
        patch.setattr(in_place, "products", _has_no_memory)
        with pytest.raises(torch.OutOfMemoryError):
            sums(kernel)
    assert kernel.is_used
    torch.testing.assert_close(sums(kernel), sums(None))


def _has_no_memory(*arguments: object, **more: object) -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_the_kernel_is_not_used_on_older_gpus(in_place_case: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    assert not in_place_case.kernel.is_used


def test_without_triton_experts_are_computed_one_after_the_other(
    in_place_case: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, sums = in_place_case
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else find(name))
    torch.testing.assert_close(sums(kernel), sums(None))
    assert not kernel.is_used
