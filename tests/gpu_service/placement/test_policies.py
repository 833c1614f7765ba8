"""The policies, alone and on traces; their gain is counted in hits."""

import dataclasses
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.traces import Step, Trace, synthetic
from gpu_service.errors import PlacementError
from gpu_service.gpu_experts.keys import ExpertKey
from gpu_service.placement.adaptive import MIN_STEPS
from gpu_service.placement.policies import POLICIES, Inputs, Placement, build
from gpu_service.placement.popularity import Popularity
from gpu_service.planning.latency_model import Costs

COSTS = Costs(cpu=[0, 8e-3], gpu=[0, 1e-3], transfer=30e-3, round_trip=0.3e-3, row=0)
"""About Mixtral-8x7B's on a server with PCIe 3."""
any_policy = pytest.mark.parametrize("policy", POLICIES)


def _inputs(num_experts: Sequence[int], capacity: int, popularity: Popularity | None = None) -> Inputs:
    return Inputs(num_experts=num_experts, capacity=capacity, popularity=popularity, costs=lambda: COSTS)


def _popularity(*counts: Sequence[float], tokens: int = 100) -> Popularity:
    return Popularity(tokens, tuple(tuple(layer) for layer in counts))


def _counted(trace: Trace, topic: str) -> Popularity:
    """The file that profiling one topic would make."""
    parts = [part for one in trace.generations if one.topic == topic for part in (one.prompt, one.output)]
    ids = np.concatenate(parts, axis=1)
    counts = [np.bincount(layer.reshape(-1), minlength=n) for layer, n in zip(ids, trace.num_experts, strict=True)]
    return _popularity(*(layer.tolist() for layer in counts), tokens=ids.shape[1])


@dataclasses.dataclass
class _Replay:
    """Runs a policy on a trace, and checks what must hold for every policy."""

    placement: Placement
    num_experts: Sequence[int]
    streams: bool = False
    """Whether experts that are not resident are copied for the batch, so that the policy may let them stay."""
    hits: int = 0
    calls: int = 0
    num_swaps: int = 0
    log: list[object] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        initial = self.placement.initial()
        self.resident = set(initial)
        assert len(initial) == len(self.resident) <= self.placement.capacity
        assert all(0 <= expert < self.num_experts[layer] for layer, expert in initial)
        self.log.append(initial)

    @property
    def hit_rate(self) -> float:
        return self.hits / self.calls

    def steps(self, steps: Iterable[Step], limit: int = 1) -> "_Replay":
        for step in steps:
            self.step([step.counts(layer, count) for layer, count in enumerate(self.num_experts)], limit)
        return self

    def step(self, counts: Sequence[Sequence[int]], limit: int = 1) -> None:
        for layer, by_expert in enumerate(counts):
            self.placement.observe(layer, by_expert)
            active = [(layer, expert) for expert, count in enumerate(by_expert) if count]
            self.hits += sum(key in self.resident for key in active)
            self.calls += len(active)
            if self.streams:
                self._stream([key for key in active if key not in self.resident], by_expert)
        swaps = self.placement.swaps(self.resident, limit)
        assert len(swaps) <= limit
        for swap in swaps:
            assert swap.load not in self.resident
            if swap.evict is not None:
                self.resident.remove(swap.evict)
            self.resident.add(swap.load)
            assert len(self.resident) <= self.placement.capacity
        self.num_swaps += len(swaps)
        self.log.append(swaps)

    def _stream(self, keys: Sequence[ExpertKey], by_expert: Sequence[int]) -> None:
        for key in keys:
            victim = self.placement.victim(key, self.resident)
            self.log.append(victim)
            if victim is not None:
                assert victim[0] != key[0] or not by_expert[victim[1]], "the batch uses it"
                self.resident.remove(victim)
                self.resident.add(key)


def _replay(
    policy: str, trace: Trace, capacity: int, popularity: Popularity | None = None, streams: bool = False
) -> _Replay:
    placement = build(policy, _inputs(trace.num_experts, capacity, popularity))
    return _Replay(placement, trace.num_experts, streams)


# what holds for all of them


@st.composite
def _cases(draw: st.DrawFn) -> tuple[list[int], int, Popularity | None, list[list[list[int]]]]:
    num_experts = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    capacity = draw(st.integers(0, sum(num_experts) + 2))
    counts = st.tuples(*(st.tuples(*[st.integers(0, 50)] * count) for count in num_experts))
    popularity = draw(st.none() | st.builds(Popularity, st.integers(1, 100), counts))
    one = st.tuples(*(st.lists(st.sampled_from([0, 0, 1, 2, 40]), min_size=n, max_size=n) for n in num_experts))
    # few different steps, many times each, so that a policy has the evidence to decide
    steps = [list(step) for step in draw(st.lists(one, min_size=1, max_size=4)) for _ in range(MIN_STEPS + 4)]
    return num_experts, capacity, popularity, steps


@any_policy
@settings(max_examples=60, deadline=None)
@given(case=_cases(), streams=st.booleans(), limit=st.integers(0, 3))
def test_any_trace_keeps_within_capacity_and_is_answered_alike_twice(
    policy: str,
    case: tuple[list[int], int, Popularity | None, list[list[list[int]]]],
    streams: bool,
    limit: int,
) -> None:
    num_experts, capacity, popularity, steps = case
    if policy == "popularity" and popularity is None:
        popularity = _popularity(*([1.0] * count for count in num_experts))
    logs = []
    for _ in range(2):
        replay = _Replay(build(policy, _inputs(num_experts, capacity, popularity)), num_experts, streams)
        for step in steps:
            replay.step(step, limit)
        logs.append(replay.log)
    assert logs[0] == logs[1]


@any_policy
def test_a_recorded_trace(policy: str) -> None:
    trace = Trace.load()
    popularity = _counted(trace, trace.topics[0])
    replay = _replay(policy, trace, 12, popularity, streams=True).steps(trace.steps(batch_size=4))
    assert replay.calls > 1000
    assert len(replay.resident) == (0 if policy == "none" else 12)


def test_an_unknown_policy_is_refused_with_those_there_are() -> None:
    with pytest.raises(PlacementError) as caught:
        build("best", _inputs([2], 1))
    assert str(caught.value) == (
        "--placement: no policy is called 'best'; known: adaptive, popularity, lru, layers, none"
    )


def test_a_policy_that_is_added_to_the_table_is_accepted_by_the_flag_and_shown_by_help() -> None:
    added = """
import sys
from gpu_service.placement import policies
policies.POLICIES["added"] = policies.NonePlacement
from gpu_service.settings import Settings
assert "torch" not in sys.modules, "--help takes seconds"
print(Settings.load(["--model", "m", "--placement", "added"]).placement)
Settings.load(["--help"])
"""
    done = subprocess.run([sys.executable, "-c", added], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    name, help_text = done.stdout.split("\n", 1)
    assert name == "added"
    assert "--placement {" + ",".join([*POLICIES, "added"]) + "}" in help_text


# the static ones


def test_none_keeps_nothing() -> None:
    assert build("none", _inputs([4, 4], 5)).initial() == []


def test_layers_fills_whole_layers_and_begins_the_next() -> None:
    assert build("layers", _inputs([3, 3, 3], 4)).initial() == [(0, 0), (0, 1), (0, 2), (1, 0)]


def test_popularity_takes_the_most_counted_of_all_layers() -> None:
    inputs = _inputs([3, 2], 3, _popularity([5, 9, 1], [7, 7]))
    assert build("popularity", inputs).initial() == [(0, 1), (1, 0), (1, 1)]


def test_popularity_without_a_file_names_the_flag() -> None:
    with pytest.raises(PlacementError, match=r"^--popularity: must name a file"):
        build("popularity", _inputs([2], 1))


@pytest.mark.parametrize("policy", ["adaptive", "lru"])
def test_without_a_file_the_start_is_spread_over_layers(policy: str) -> None:
    inputs = _inputs([3, 1, 3], 6)
    assert build(policy, inputs).initial() == [(0, 0), (1, 0), (2, 0), (0, 1), (2, 1), (0, 2)]


# lru


def test_lru_starts_with_the_most_popular_of_each_layer() -> None:
    inputs = _inputs([3, 3], 4, _popularity([90, 80, 70], [1, 3, 2]))
    assert build("lru", inputs).initial() == [(0, 0), (1, 1), (0, 1), (1, 2)]


def test_lru_gives_up_the_layer_s_least_recently_used() -> None:
    lru = build("lru", _inputs([4, 4], 4))
    resident = {(0, 0), (0, 1), (0, 2), (1, 0)}
    for counts in ([0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]):
        lru.observe(0, counts)
    assert lru.victim((0, 3), resident) == (0, 1)
    lru.observe(0, [0, 1, 0, 1])
    assert lru.victim((0, 3), resident) == (0, 0)


def test_lru_gives_up_nothing_that_the_batch_uses() -> None:
    lru = build("lru", _inputs([4, 4], 3))
    lru.observe(0, [1, 1, 1, 0])
    assert lru.victim((0, 2), {(0, 0), (0, 1), (1, 3)}) is None


def test_lru_leaves_a_layer_without_slots_alone() -> None:
    lru = build("lru", _inputs([4, 4], 3))
    lru.observe(1, [0, 0, 0, 1])
    assert lru.victim((1, 3), {(0, 0), (0, 1)}) is None


def test_lru_never_swaps_in_the_background() -> None:
    lru = build("lru", _inputs([4], 1))
    for _ in range(100):
        lru.observe(0, [0, 0, 0, 1])
    assert lru.swaps({(0, 0)}, 4) == []


def test_lru_hits_as_often_as_a_cache_for_each_layer() -> None:
    """Compared with the obvious implementation: an ordered dict for each layer."""
    trace = Trace.load()
    slots = 3
    caches = [OrderedDict.fromkeys(range(slots)) for _ in trace.num_experts]
    hits = 0
    for step in trace.decode():
        for cache, ids in zip(caches, step.ids, strict=True):
            active = sorted(set(ids.reshape(-1).tolist()))
            hits += sum(expert in cache for expert in active)
            for expert in active:
                cache[expert] = None
                cache.move_to_end(expert)
            while len(cache) > slots:
                cache.popitem(last=False)
    replay = _replay("lru", trace, slots * len(trace.num_experts), streams=True).steps(trace.decode())
    assert replay.hits == hits
    assert replay.hit_rate > 0.4


# adaptive: when it swaps


def _adaptive(costs: Costs = COSTS, num_experts: Sequence[int] = (4,), capacity: int = 1) -> Placement:
    return build("adaptive", Inputs(num_experts=num_experts, capacity=capacity, popularity=None, costs=lambda: costs))


def _uses(placement: Placement, *counts: Sequence[int], times: int = 100, layer: int = 0) -> None:
    for _ in range(times):
        for one in counts:
            placement.observe(layer, one)


def test_adaptive_brings_what_is_used_and_gives_up_what_is_not() -> None:
    adaptive = _adaptive(capacity=2)
    _uses(adaptive, [0, 1, 0, 1])
    (swap,) = adaptive.swaps({(0, 0), (0, 1)}, 4)
    assert (swap.load, swap.evict) == ((0, 3), (0, 0))


def test_adaptive_swaps_between_layers() -> None:
    adaptive = _adaptive(num_experts=[2, 2], capacity=2)
    _uses(adaptive, [1, 0], [0, 1], layer=0)
    _uses(adaptive, [1, 1], layer=1)
    (swap,) = adaptive.swaps({(0, 0), (1, 1)}, 4)
    assert (swap.load, swap.evict) == ((1, 0), (0, 0))


def test_adaptive_takes_the_best_swap_first() -> None:
    adaptive = _adaptive(num_experts=[6], capacity=2)
    _uses(adaptive, [0, 0, 1, 0, 1, 0], [0, 0, 0, 0, 1, 0], [0, 1, 0, 0, 1, 0])
    swaps = adaptive.swaps({(0, 0), (0, 5)}, 2)
    assert swaps[0].load == (0, 4)
    assert adaptive.swaps({(0, 0), (0, 5)}, 1) == swaps[:1]


def test_adaptive_fills_a_free_slot_without_evicting() -> None:
    adaptive = _adaptive(capacity=2)
    _uses(adaptive, [0, 1, 0, 1])
    (swap,) = adaptive.swaps({(0, 1)}, 4)
    assert (swap.load, swap.evict) == ((0, 3), None)


def test_adaptive_evicts_once_no_slot_is_free() -> None:
    adaptive = _adaptive(capacity=3)
    _uses(adaptive, [0, 1, 0, 1])
    assert [swap.evict for swap in adaptive.swaps({(0, 0), (0, 2)}, 4)] == [None, (0, 0)]


def test_adaptive_does_not_load_what_came_by_another_way() -> None:
    """With so many experts a call scans one layer only, and uses the latest scan of the others."""
    adaptive = _adaptive(num_experts=[100, 100], capacity=2)
    _uses(adaptive, [1 if expert < 2 else 0 for expert in range(100)])
    assert adaptive.swaps({(0, 50), (0, 51)}, 0) == []
    (swap,) = adaptive.swaps({(0, 1), (0, 51)}, 4)
    assert (swap.load, swap.evict) == ((0, 0), (0, 51))


def test_adaptive_heeds_a_capacity_that_was_lowered() -> None:
    adaptive = _adaptive(capacity=2)
    _uses(adaptive, [0, 1, 0, 1])
    adaptive.capacity = 1
    (swap,) = adaptive.swaps({(0, 2)}, 1)
    assert swap.evict == (0, 2)


def test_adaptive_waits_for_evidence() -> None:
    adaptive = _adaptive()
    _uses(adaptive, [0, 0, 0, 1], times=MIN_STEPS - 1)
    assert adaptive.swaps({(0, 0)}, 1) == []
    _uses(adaptive, [0, 0, 0, 1], times=2)
    assert adaptive.swaps({(0, 0)}, 1) != []


@pytest.mark.parametrize(
    ("costs", "pays"),
    [
        (COSTS, True),
        (dataclasses.replace(COSTS, cpu=[0, 1e-3]), False),  # the CPU is as fast
        (dataclasses.replace(COSTS, cpu=[0, 1.2e-3]), False),  # not enough slower to pay for copies
        (dataclasses.replace(COSTS, cpu=[0, 1.2e-3]).without_cpu(), True),
        (COSTS.without_transfer(), False),
        (COSTS.without_transfer().without_cpu(), False),
        (dataclasses.replace(COSTS, transfer=0.5e-3), False),  # streaming costs less than computing
    ],
)
def test_adaptive_swaps_where_it_pays(costs: Costs, pays: bool) -> None:
    adaptive = _adaptive(costs)
    _uses(adaptive, [0, 0, 0, 1])
    assert bool(adaptive.swaps({(0, 0)}, 1)) is pays


def test_adaptive_reckons_with_the_costs_of_the_moment() -> None:
    current = [dataclasses.replace(COSTS, cpu=[0, 1e-3])]
    adaptive = build("adaptive", Inputs(num_experts=[4], capacity=1, popularity=None, costs=lambda: current[0]))
    _uses(adaptive, [0, 0, 0, 1])
    assert adaptive.swaps({(0, 0)}, 1) == []
    current[0] = COSTS
    assert adaptive.swaps({(0, 0)}, 1) != []


def test_adaptive_does_not_let_equals_take_turns() -> None:
    adaptive = _adaptive(num_experts=[2])
    replay = _Replay(adaptive, [2])
    for _ in range(200):
        for counts in ([[1, 0]], [[1, 0]], [[0, 1]], [[0, 1]]):
            replay.step(counts)
    assert replay.num_swaps <= 1


def test_adaptive_lets_a_streamed_expert_stay_where_it_is_likelier() -> None:
    adaptive = _adaptive(capacity=2)
    _uses(adaptive, [0, 1, 0, 1], [0, 1, 0, 0])
    resident = {(0, 0), (0, 1)}
    adaptive.swaps(resident, 0)
    adaptive.observe(0, [0, 0, 1, 1])
    assert adaptive.victim((0, 3), resident) == (0, 0)
    resident = {(0, 1), (0, 3)}
    assert adaptive.victim((0, 2), resident) is None, "it is the less likely one"


def test_adaptive_gives_up_nothing_that_the_batch_uses() -> None:
    adaptive = _adaptive(capacity=1)
    _uses(adaptive, [0, 0, 0, 1])
    adaptive.swaps({(0, 0)}, 0)
    adaptive.observe(0, [1, 0, 0, 1])
    assert adaptive.victim((0, 3), {(0, 0)}) is None


# adaptive: what it gains


def _by_topic(replay: _Replay, trace: Trace, steps: Iterator[Step], limit: int = 1) -> dict[str, float]:
    """Hit rates, topic after topic."""
    rates = {}
    for step in steps:
        if step.topic not in rates:
            replay.hits = replay.calls = 0
        replay.steps([step], limit)
        rates[step.topic] = replay.hit_rate
    return rates


def test_adaptive_beats_a_file_of_another_topic_once_the_topic_shifts() -> None:
    trace = Trace.load()
    before, after = trace.topics
    file = _counted(trace, before)
    static = _by_topic(_replay("popularity", trace, 8, file), trace, trace.steps())
    adaptive = _by_topic(_replay("adaptive", trace, 8, file), trace, trace.steps())
    best = _by_topic(_replay("popularity", trace, 8, _counted(trace, after)), trace, trace.steps())
    assert adaptive[before] > static[before] - 0.01
    assert adaptive[after] > static[after] + 0.5 * (best[after] - static[after])


def test_adaptive_finds_what_is_popular_without_a_file() -> None:
    trace = Trace.load()
    spread = _replay("adaptive", trace, 8)
    start = set(spread.resident)
    adaptive = _by_topic(spread, trace, trace.steps())
    best = _by_topic(_replay("popularity", trace, 8, _counted(trace, trace.topics[0])), trace, trace.steps())
    assert spread.resident != start
    assert adaptive[trace.topics[0]] > 0.85 * best[trace.topics[0]]


def test_adaptive_follows_a_shift_among_many_small_experts() -> None:
    routing = dataclasses.replace(synthetic.FINE_GRAINED, num_layers=4, num_experts=64)
    trace = synthetic.generate(routing, num_generations=4)
    costs = dataclasses.replace(COSTS, cpu=[0, 0.5e-3], gpu=[0, 0.1e-3], transfer=1e-3)
    file = _counted(trace, "first")
    inputs = Inputs(num_experts=trace.num_experts, capacity=64, popularity=file, costs=lambda: costs)
    static = _by_topic(_replay("popularity", trace, 64, file), trace, trace.steps())
    adaptive = _by_topic(_Replay(build("adaptive", inputs), trace.num_experts), trace, trace.steps(), limit=2)
    best = _by_topic(_replay("popularity", trace, 64, _counted(trace, "second")), trace, trace.steps())
    assert adaptive["second"] > static["second"] + 0.3 * (best["second"] - static["second"])


@pytest.mark.parametrize("skew", [0.0, 0.28])
def test_adaptive_hardly_swaps_while_nothing_changes(skew: float) -> None:
    """Mixtral's shape: as uneven as measured, and perfectly even, so that all differences are chance."""
    routing = dataclasses.replace(synthetic.MIXTRAL, num_layers=8, log_popularity=lambda scores: skew * scores)
    trace = synthetic.generate(routing, topics=("only",), num_generations=8)
    replay = _replay("adaptive", trace, 28, _counted(trace, "only")).steps(trace.steps())
    num_steps = sum(1 for _ in trace.steps())
    assert num_steps > 1000
    assert replay.num_swaps < 0.005 * num_steps
