import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.orchestration import bound
from benchmarks.orchestration.simulate import run
from benchmarks.orchestration.strategies import deepspeed, fiddler, llama_cpp, mixtral_offloading, ours
from benchmarks.orchestration.strategies.server import Server
from benchmarks.orchestration.workloads import Workload
from tests.support.orchestrated import POPULARITY, request, system


@given(st.randoms(use_true_random=False))
def test_the_bound_is_below_every_division_of_whole_experts(rng: random.Random) -> None:
    residents = [(rng.uniform(0.01, 2), rng.uniform(0.1, 3)) for _ in range(rng.randint(0, 3))]
    missing = [(rng.uniform(0.01, 1), rng.uniform(0.1, 3)) for _ in range(rng.randint(0, 5))]
    dense, transfer = rng.random(), rng.uniform(0.1, 2)
    least = bound.divide(residents, missing, head_start=dense, transfer=transfer)
    experts = residents + missing
    for there in itertools.product([False, True], repeat=len(experts)):
        on_cpu = sum(cpu for (_, cpu), on_gpu in zip(experts, there, strict=True) if not on_gpu)
        on_gpu = sum(gpu for (gpu, _), on_gpu in zip(experts, there, strict=True) if on_gpu)
        copied = transfer * sum(there[len(residents) :]) - dense
        assert least <= max(on_cpu, on_gpu, copied) + 1e-9


def test_the_last_expert_is_divided_so_that_both_sides_end_together() -> None:
    # two experts of 3 s on the CPU or of 1 s of copying: 1.5 of them are copied
    missing = [(0.1, 3.0), (0.1, 3.0)]
    assert bound.divide([], missing, head_start=0.0, transfer=1.0) == pytest.approx(1.5)
    # half a second of it before
    assert bound.divide([], missing, head_start=0.5, transfer=1.0) == pytest.approx(1.125)
    assert bound.divide([], missing, head_start=9.0, transfer=1.0) == pytest.approx(0.2 * 3 / 3.1)
    assert bound.divide([], [], head_start=0.0, transfer=1.0) == 0.0
    # two residents that take as long on either side
    assert bound.divide([(2.0, 2.0), (2.0, 2.0)], [], head_start=0.0, transfer=1.0) == pytest.approx(2.0)


@pytest.mark.parametrize("prompt_only", [False, True])
@pytest.mark.parametrize(
    "kind",
    [
        fiddler.Fiddler,
        mixtral_offloading.MixtralOffloading,
        deepspeed.DeepSpeed,
        llama_cpp.LlamaCpp,
        ours.OursPopularity,
    ],
)
def test_no_strategy_whose_experts_stay_is_faster(kind: type[Server], prompt_only: bool) -> None:
    requests = [request(seed, rows=4) for seed in range(3)]
    workload = Workload("prefill" if prompt_only else "decode", "", lambda trace: requests)
    result = run(kind, system(), POPULARITY, workload=workload, requests=requests)
    assert bound.seconds(system(), requests[1:], prompt_only) < result.seconds
