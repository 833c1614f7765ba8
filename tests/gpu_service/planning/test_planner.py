import math
import random
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.orchestration.optimality import Case, brute_force, random_case, ratio, seconds
from gpu_service.planning import planner
from gpu_service.planning.latency_model import Costs

MAX_ROWS = 20
MAX_DRAWN_ROWS = 6
INFINITE = math.inf


def _costs(
    cpu: float = 1.0, gpu: float = 0.01, transfer: float = 4.0, round_trip: float = 0.5, row: float = 0.0
) -> Costs:
    """On the CPU each row takes the same time; on the GPU each expert does, however many rows it has."""
    cpu_table = [cpu * rows for rows in range(MAX_ROWS + 1)]
    return Costs(cpu_table, [0.0] + [gpu] * MAX_ROWS, transfer, round_trip, row)


@st.composite
def _tables(draw: st.DrawFn) -> list[float]:
    """Any seconds by rows that never fall."""
    steps = draw(st.lists(st.floats(0, 1), min_size=MAX_DRAWN_ROWS, max_size=MAX_DRAWN_ROWS))
    return [0.0, *np.cumsum(steps).tolist()]


@st.composite
def _cases(draw: st.DrawFn) -> Case:
    counts = draw(st.lists(st.integers(0, MAX_DRAWN_ROWS), min_size=1, max_size=12))
    experts = st.integers(0, len(counts) - 1)
    scale = draw(st.sampled_from([0.0, 0.01, 1.0]))
    costs = Costs(
        cpu=draw(_tables()),
        gpu=[scale * value for value in draw(_tables())],
        transfer=draw(st.floats(0, 5) | st.just(INFINITE)),
        round_trip=draw(st.floats(0, 10) | st.just(INFINITE)),
        row=draw(st.floats(0, 0.1)),
        experts_per_row=draw(st.integers(1, 8)),
    )
    pending = draw(st.dictionaries(experts, st.floats(0, 1, exclude_min=True), max_size=12))
    return Case(counts, draw(st.frozensets(experts)), costs, pending)


def _check_whole(case: Case, plan: planner.Plan) -> None:
    """Every active expert is in one list, and the predictions are the cost model's."""
    active = [expert for expert, count in enumerate(case.counts) if count]
    assert sorted([*plan.resident, *plan.streamed, *plan.remote]) == active
    assert list(plan.resident) == [expert for expert in active if expert in case.resident]
    assert list(plan.remote) == sorted(plan.remote)
    assert (plan.remote_seconds, plan.gpu_seconds) == pytest.approx(seconds(case, plan.streamed, plan.remote))


@given(_cases())
@settings(max_examples=200, deadline=None)
def test_a_plan_is_within_two_per_cent_of_the_best(case: Case) -> None:
    _check_whole(case, case.plan())
    assert ratio(case) >= 0.98


def test_a_plan_is_within_two_per_cent_of_the_best_where_sides_are_of_one_size() -> None:
    rng = random.Random(0)  # for one of these cases, two sets of weights are not enough for the search
    for _ in range(1000):
        case = random_case(rng)
        _check_whole(case, case.plan())
        assert ratio(case) >= 0.98, case


@given(_cases(), st.floats(0, 0.5))
@settings(max_examples=50, deadline=None)
def test_a_plan_is_the_best_where_copies_cost_the_same_and_computing_does_not_grow(case: Case, gpu: float) -> None:
    costs = case.costs
    flat = Costs(costs.cpu, [0.0] + [gpu] * MAX_DRAWN_ROWS, costs.transfer, costs.round_trip, costs.row)
    case = Case(case.counts, case.resident, flat)
    assert ratio(case) == pytest.approx(1)


@given(_cases())
@settings(max_examples=25, deadline=None)
def test_brute_force_misses_no_plan(case: Case) -> None:
    rest = [expert for expert, count in enumerate(case.counts) if count and expert not in case.resident][:6]
    case = Case([count if e in rest or e in case.resident else 0 for e, count in enumerate(case.counts)], *_rest(case))
    choices = product([False, True], repeat=len(rest))
    every = [
        max(seconds(case, [e for e, here in zip(rest, choice, strict=True) if here],
                    [e for e, here in zip(rest, choice, strict=True) if not here]))
        for choice in choices
    ]  # fmt: skip
    assert brute_force(case) == pytest.approx(min(every))


def _rest(case: Case) -> tuple[frozenset[int], Costs, dict[int, float]]:
    return case.resident, case.costs, dict(case.pending)


def test_many_experts_are_planned_as_well_as_a_split_of_single_experts_allows() -> None:
    rng = random.Random(0)
    for _ in range(50):
        counts = [rng.randint(1, MAX_ROWS) for _ in range(128)]
        costs = _costs(gpu=0.0, transfer=rng.uniform(1, 20))
        plan = planner.plan(counts, frozenset(), costs)
        # if experts could be divided, the sides would end together
        apart = abs(plan.remote_seconds - plan.gpu_seconds)
        assert apart <= costs.transfer + MAX_ROWS * costs.cpu[1]


def test_experts_of_few_rows_are_remote_and_those_of_many_are_streamed_in_the_order_of_rows() -> None:
    plan = planner.plan([1, 12, 0, 2, 15], frozenset(), _costs(transfer=2.0))
    assert (plan.streamed, plan.remote) == ((4, 1), (0, 3))


def test_a_resident_expert_is_never_computed_elsewhere() -> None:
    plan = planner.plan([3, 3], {1}, _costs(cpu=1e-6, gpu=100.0, round_trip=0.0, transfer=50.0))
    assert plan == planner.Plan(resident=(1,), streamed=(), remote=(0,), remote_seconds=3e-6, gpu_seconds=100.0)


def test_of_plans_that_take_as_long_the_one_with_fewest_copies_is_made() -> None:
    costs = _costs(cpu=0.1, gpu=1.0, transfer=0.001, round_trip=0.0)
    counts = [1] * 10 + [2] * 2
    assert planner.plan(counts, set(range(10)), costs).streamed == ()
    costs = Costs(costs.cpu, [0.0] * (MAX_ROWS + 1), 1.0, 0.0, 0.0)
    plan = planner.plan([20, 20], frozenset(), costs)  # 2 seconds either way, and 4 for both on the CPU
    assert len(plan.streamed) == 1


def test_without_the_cpu_everything_is_streamed() -> None:
    for costs in (_costs().without_cpu(), _costs().without_cpu().without_transfer()):
        plan = planner.plan([1, 0, 2, 3], {2}, costs)
        assert (plan.resident, plan.streamed, plan.remote) == ((2,), (3, 0), ())
        assert plan.remote_seconds == 0


def test_without_transfer_nothing_is_streamed() -> None:
    plan = planner.plan([1, 0, 2, 3], {2}, _costs().without_transfer(), pending={0: 0.001})
    assert (plan.resident, plan.streamed, plan.remote) == ((2,), (), (0, 3))
    assert plan.gpu_seconds == 0.01


def test_nobody_is_asked_for_what_is_all_resident() -> None:
    plan = planner.plan([1, 0, 2], {0, 1, 2}, _costs(round_trip=1e9))
    assert plan == planner.Plan((0, 2), (), (), 0.0, 0.02)


def test_a_layer_without_rows_costs_nothing() -> None:
    assert planner.plan([0, 0], {0}, _costs()) == planner.Plan((), (), (), 0.0, 0.0)


def test_a_round_trip_is_only_made_where_it_pays() -> None:
    assert planner.plan([1], frozenset(), _costs(transfer=4.0, round_trip=2.9)).remote == (0,)
    assert planner.plan([1], frozenset(), _costs(transfer=4.0, round_trip=3.1)).streamed == (0,)


def test_an_expert_that_is_half_there_is_streamed_where_a_whole_copy_would_not_pay() -> None:
    counts, costs = [2, 2, 2], _costs(transfer=8.0, round_trip=0.0)
    assert planner.plan(counts, frozenset(), costs).streamed == ()
    assert planner.plan(counts, frozenset(), costs, pending={1: 0.25}).streamed == (1,)


def test_what_is_under_way_is_copied_first() -> None:
    costs = _costs(cpu=100.0, transfer=1.0)
    plan = planner.plan([1, 2, 3, 4], frozenset(), costs, pending={0: 1.0, 2: 0.5})
    assert plan.streamed == (2, 0, 3, 1)


def test_rows_cost_their_way_to_the_cpu() -> None:
    costs = Costs([0.0, 1.0, 1.0], [0.0] * 3, INFINITE, 0.5, row=0.25)
    assert planner.plan([1, 2], frozenset(), costs).remote_seconds == 0.5 + 2 + 3 * 0.25
    shared = Costs([0.0, 1.0, 1.0], [0.0] * 3, INFINITE, 0.5, row=0.25, experts_per_row=4)
    assert planner.plan([1, 2], frozenset(), shared).remote_seconds == 0.5 + 2 + 3 * 0.25 / 2


def test_all_remote_predicts_what_it_can() -> None:
    assert planner.all_remote([0, 2, 1], None) == planner.Plan((), (), (1, 2), INFINITE, 0.0)
    assert planner.all_remote([0, 2, 1], _costs(row=0.125)) == planner.Plan((), (), (1, 2), 0.5 + 2.25 + 1.125, 0.0)
    assert (
        planner.all_remote([0, 0], None) == planner.all_remote([0, 0], _costs()) == planner.Plan((), (), (), 0.0, 0.0)
    )


def _ids(num_rows: int, num_experts: int = 4, k: int = 2) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    """Row r uses experts r, r + 1, ..., and every third row only the first of them."""
    ids = (np.arange(num_rows)[:, None] + np.arange(k)).astype(np.int32) % np.int32(num_experts)
    ids[::3, 1:] = -1
    return ids


def _prefill_costs(cpu: list[float], round_trip: float, row: float) -> Costs:
    return Costs(cpu, [0.0] * len(cpu), INFINITE, round_trip, row)


def test_a_prompt_whose_way_takes_as_long_as_its_computing_is_sent_in_several_messages() -> None:
    computing_per_row = [0.001 * rows for rows in range(513)]
    slow_hop = _prefill_costs(computing_per_row, round_trip=1e-4, row=0.002)
    assert planner.chunks(_ids(512), slow_hop) == 8
    assert planner.chunks(_ids(512), slow_hop, most=4) == 4
    assert planner.chunks(_ids(96), slow_hop) == 3  # of at least 32 rows
    assert planner.chunks(_ids(63), slow_hop) == 1


def test_a_prompt_is_sent_in_one_message_where_reading_weights_is_what_takes_long() -> None:
    assert planner.chunks(_ids(512), _prefill_costs([0.0] + [1.0] * 512, round_trip=1e-4, row=0.002)) == 1


def test_a_prompt_is_sent_in_one_message_where_the_hop_is_short_or_every_message_is_dear() -> None:
    computing_per_row = [0.001 * rows for rows in range(513)]
    # transport takes a hundredth of computing
    assert planner.chunks(_ids(512), _prefill_costs(computing_per_row, round_trip=1e-4, row=2e-5)) == 1
    assert planner.chunks(_ids(512), _prefill_costs(computing_per_row, round_trip=10.0, row=0.002)) == 1


def test_weights_that_are_read_anew_limit_the_messages() -> None:
    """Up to 100 rows, an expert takes the same time."""
    cpu = [0.0] + [max(0.1, 0.001 * rows) for rows in range(1, 513)]
    assert 1 < planner.chunks(_ids(512), _prefill_costs(cpu, round_trip=1e-4, row=0.002)) < 8
