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
from tests.benchmarks.orchestrated import POPULARITY, request, system


@given(st.randoms(use_true_random=False))
def test_the_bound_is_below_every_division_of_whole_experts(rng: random.Random) -> None:
    num = rng.randint(0, 6)
    cpu = [rng.uniform(0.1, 3) for _ in range(num)]
    gpu = [rng.uniform(0.01, 1) for _ in range(num)]
    dense, here, transfer = rng.random(), rng.random(), rng.uniform(0.1, 2)
    least = bound.divide(dense, here, sorted(cpu, reverse=True), sorted(gpu), transfer)
    for copied in itertools.product([False, True], repeat=num):
        on_cpu = dense + sum(seconds for seconds, there in zip(cpu, copied, strict=True) if not there)
        on_gpu = dense + here + sum(seconds for seconds, there in zip(gpu, copied, strict=True) if there)
        assert least <= max(on_cpu, on_gpu, transfer * sum(copied)) + 1e-9


def test_the_last_expert_is_divided_so_that_both_sides_end_together() -> None:
    # two experts of 3 s on the CPU or of 1 s of copying: 1.5 of them are copied
    assert bound.divide(0.0, 0.0, [3.0, 3.0], [0.0, 0.0], 1.0) == pytest.approx(1.5)
    assert bound.divide(0.0, 0.0, [], [], 1.0) == 0.0
    assert bound.divide(1.0, 5.0, [1.0], [0.1], 1.0) == 6.0


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
    result = run(kind, system(), POPULARITY, workload, requests)
    assert bound.seconds(system(), requests[1:], prompt_only) < result.seconds
