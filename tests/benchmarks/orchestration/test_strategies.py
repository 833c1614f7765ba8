from dataclasses import replace

import pytest

from benchmarks.orchestration.simulate import run
from benchmarks.orchestration.strategies import deepspeed, fiddler, llama_cpp, mixtral_offloading, ours
from benchmarks.orchestration.strategies.server import Server
from benchmarks.orchestration.workloads import Workload
from gpu_service.placement.policies import POLICIES
from tests.support.orchestrated import EXPERTS, LAYERS, MACHINE, MODEL, POPULARITY, batch, request, system

_OURS = (
    ours.Ours,
    ours.OursBesideOthers,
    ours.OursPopularity,
    ours.OursLru,
    ours.OursLayers,
    ours.OursNone,
)
_RIVALS = (fiddler.Fiddler, mixtral_offloading.MixtralOffloading, deepspeed.DeepSpeed, llama_cpp.LlamaCpp)
_COPY = MODEL.expert_bytes / MACHINE.pcie_bytes_per_second
_DECODE = Workload("decode", "", lambda trace: [])


def _served(kind: type[Server], rows: int = 3, share: float = 0.5) -> Server:
    server = kind(system(share), POPULARITY)
    for seed in range(3):
        one = request(seed, rows=rows)
        server.prompt(one.prompt)
        for step in one.steps:
            server.decode(step, context=41)
    return server


@pytest.mark.parametrize("kind", [*_OURS, *_RIVALS])
def test_every_second_is_accounted_for(kind: type[Server]) -> None:
    server = _served(kind)
    assert sum(server.spent.values()) == pytest.approx(server.now)
    assert min(server.spent.values()) >= 0


@pytest.mark.parametrize("kind", [*_OURS, *_RIVALS])
def test_the_same_requests_take_the_same_time(kind: type[Server]) -> None:
    requests = [request(seed) for seed in range(3)]
    first, second = (run(kind, system(), POPULARITY, workload=_DECODE, requests=requests) for _ in range(2))
    assert first == second


def test_all_policies_are_compared() -> None:
    assert {kind.policy for kind in _OURS} == set(POLICIES)


def test_what_lies_on_the_gpu_is_hit() -> None:
    assert _served(ours.OursNone).hits == 0
    everything = _served(ours.Ours, share=1.0)
    assert everything.hits == everything.calls
    assert everything.link.copied_bytes == 0


def test_fiddler_takes_the_cheaper_side_for_each_expert_and_adds_them_up() -> None:
    server = fiddler.Fiddler(
        system(resident_share=13 / 24), POPULARITY
    )  # the first four of each layer, and a free slot
    costs = system().costs
    few, many = 1, 200
    assert costs.cpu[few] < _COPY < costs.cpu[many]
    rows = [(0, 7)] * few + [(1, 6)] * many
    server.prompt(batch(*rows))
    assert server.spent["cpu"] == pytest.approx(LAYERS * costs.cpu[few])
    assert server.spent["copies"] == pytest.approx(LAYERS * _COPY)
    assert server.spent["gpu"] == pytest.approx(LAYERS * (costs.gpu[few] + 2 * costs.gpu[many]))
    assert server.hits == 2 * LAYERS


def test_fiddler_as_released_has_its_constants() -> None:
    server = fiddler.FiddlerAsReleased(system(resident_share=1 / 24), POPULARITY)
    server.prompt(batch(*[(0, 1)] * 5))
    assert server.spent["cpu"] == pytest.approx(LAYERS * 2 * 5 * 7e-3)
    server = fiddler.FiddlerAsReleased(system(resident_share=1 / 24), POPULARITY)
    server.prompt(batch(*[(0, 1)] * 50))
    assert server.spent["copies"] == pytest.approx(LAYERS * 2 * 70e-3)


def test_mixtral_offloading_swaps_the_least_recently_used_of_the_layer() -> None:
    # two experts of each layer beside the four buffers: 0 and 1 at first
    server = mixtral_offloading.MixtralOffloading(system(resident_share=10 / 24), POPULARITY)
    for experts, hits in (((0, 1), 2), ((0, 2), 1), ((0, 3), 1), ((2, 3), 1)):
        before = server.hits
        server.decode(batch(experts), context=10)
        assert server.hits - before == hits * LAYERS, experts
    misses = 3 * LAYERS
    assert server.link.copied_bytes == misses * MODEL.expert_bytes
    assert server.written_bytes == misses * MODEL.expert_bytes
    assert server.spent["copies"] == pytest.approx(2 * misses * _COPY)


def test_deepspeed_copies_every_weight_for_every_forward() -> None:
    server = deepspeed.DeepSpeed(system(), POPULARITY)
    server.decode(batch((0, 1)), context=10)
    server.decode(batch((0, 1)), context=11)
    parameters = LAYERS * (MODEL.layer_parameters + EXPERTS * MODEL.expert_parameters) + MODEL.head_parameters
    assert server.link.copied_bytes == pytest.approx(2 * 2 * parameters)
    assert server.hits == 0


def test_llama_cpp_computes_small_batches_in_place_and_copies_for_large_ones() -> None:
    server = llama_cpp.LlamaCpp(system(resident_share=9 / 24), POPULARITY)  # one whole layer
    server.decode(batch(*[(0, 1)] * 31), context=10)
    assert server.link.copied_bytes == 0
    assert server.spent["cpu"] > 0
    assert server.hits == 2
    server.prompt(batch(*[(0, 1)] * 32))
    assert server.link.copied_bytes == (LAYERS - 1) * 2 * MODEL.expert_bytes


def test_both_sides_of_ours_run_at_once() -> None:
    slow_link = replace(MACHINE, pcie_bytes_per_second=1e8)
    server = ours.OursPopularity(system(machine=slow_link), POPULARITY)
    rows = [(0, 7)] * 60
    before = server.now
    server.prompt(batch(*rows))
    costs = system().costs
    # the resident expert is computed while the CPU is at work on the other
    assert server.now - before >= LAYERS * costs.cpu[60]
    assert server.spent["gpu"] == 0
    assert server.spent["copies"] == 0


def test_prompts_are_cut_as_the_scheduler_does() -> None:
    chunk, alone = ours.OursBesideOthers.prompt_chunk, ours.Ours.prompt_chunk
    assert chunk is not None
    assert alone is not None
    rows = [(0, 7)] * (2 * chunk)
    cut, whole = ours.OursBesideOthers(system(), POPULARITY), ours.OursNone(system(), POPULARITY)
    cut.prompt(batch(*rows))
    whole.prompt(batch(*rows))
    assert alone >= 2 * chunk
    assert cut.calls == 2 * whole.calls


def test_a_swap_is_used_only_when_it_has_landed() -> None:
    server = ours.Ours(system(resident_share=6 / 24), POPULARITY)
    # 6 and 7 are unpopular by the file and all that is asked for
    for step in range(400):
        server.decode(batch((6, 7)), context=10 + step)
    assert server.hits > 0
    assert server.link.copied_bytes >= MODEL.expert_bytes
    assert server.hits < server.calls
