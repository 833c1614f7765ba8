import math
import random

import pytest

from gpu_service.planning.latency_model import Correction, Costs, LatencyModel, Measurements, timeout_seconds

MEASURED = Measurements(
    expert_bytes=100,
    cpu=((1, 0.010), (2, 0.010), (4, 0.020), (8, 0.040)),
    hop=((1, 0.0011), (1, 0.0009), (1, 0.0010), (11, 0.0020)),
    gpu=((1, 0.001), (8, 0.001)),
    transfer=(0.02, 0.05, 0.03),
)


def test_costs_are_the_measurements() -> None:
    costs = LatencyModel(MEASURED, [100], max_rows=16).costs(0)
    assert [costs.cpu[rows] for rows in (0, 1, 3, 16)] == pytest.approx([0, 0.01, 0.015, 0.08])
    assert [costs.gpu[rows] for rows in (0, 1, 16)] == pytest.approx([0, 0.001, 0.001])
    assert len(costs.cpu) == len(costs.gpu) == 17
    assert (costs.transfer, costs.round_trip, costs.row) == pytest.approx((0.03, 0.0009, 0.0001))


def test_costs_of_a_layer_are_in_proportion_to_its_experts() -> None:
    model = LatencyModel(MEASURED, [100, 50, 100], max_rows=4)
    whole, half = model.costs(0), model.costs(1)
    assert [half.cpu[4], half.gpu[4], half.transfer] == pytest.approx([0.01, 0.0005, 0.015])
    assert (half.round_trip, half.row) == (whole.round_trip, whole.row)
    assert model.costs(2) is whole


def test_nothing_can_be_streamed_where_no_copy_was_measured() -> None:
    costs = LatencyModel(Measurements(100, MEASURED.cpu, MEASURED.hop), [100], max_rows=2).costs(0)
    assert costs.transfer == math.inf
    assert costs.gpu == [0, 0, 0]


def test_a_hop_of_one_size_costs_nothing_by_rows() -> None:
    costs = LatencyModel(Measurements(100, MEASURED.cpu, ((1, 0.001),)), [100], max_rows=2).costs(0)
    assert (costs.round_trip, costs.row) == (0.001, 0)
    noisy = LatencyModel(Measurements(100, MEASURED.cpu, ((1, 0.002), (9, 0.001))), [100], max_rows=2).costs(0)
    assert (noisy.round_trip, noisy.row) == (0.002, 0)


def test_without_a_side_only_its_costs_change() -> None:
    costs = Costs([0, 1], [0, 2], 3.0, 4.0, 5.0, 6)
    assert costs.without_cpu() == Costs([0, 1], [0, 2], 3.0, math.inf, 5.0, 6)
    assert costs.without_transfer() == Costs([0, 1], [0, 2], math.inf, 4.0, 5.0, 6)
    assert costs.without_cpu().remote is costs.remote


@pytest.mark.parametrize("factor", [0.3, 1.0, 3.0])
def test_a_correction_follows_what_things_take(factor: float) -> None:
    correction, rng = Correction(), random.Random(0)
    for _ in range(400):
        correction.observe(0.01, 0.01 * factor * rng.uniform(0.8, 1.25))
    assert correction.factor == pytest.approx(factor, rel=0.05)


def test_a_correction_is_slow_and_one_timing_hardly_moves_it() -> None:
    correction = Correction()
    correction.observe(0.001, 60.0)
    assert 1 < correction.factor < 1.05
    for _ in range(30):
        correction.observe(0.01, 0.03)
    assert correction.factor < 2


def test_a_correction_has_bounds() -> None:
    up, down = Correction(), Correction()
    for _ in range(3000):
        up.observe(0.001, 1.0)
        down.observe(1.0, 0.001)
    assert (up.factor, down.factor) == pytest.approx((8, 1 / 8))


@pytest.mark.parametrize(
    ("predicted", "actual"), [(0.0, 1.0), (math.inf, 1.0), (1.0, 0.0), (1.0, math.nan), (1.0, math.inf), (-1.0, 1.0)]
)
def test_a_timing_without_meaning_is_left_out(predicted: float, actual: float) -> None:
    correction = Correction()
    correction.observe(predicted, actual)
    assert correction.factor == 1


def test_another_tenant_on_the_cpu_moves_its_costs_and_no_others() -> None:
    model = LatencyModel(MEASURED, [100], max_rows=4)
    before = model.costs(0)
    for _ in range(500):
        predicted = model.costs(0).cpu[4]
        model.observe_cpu(predicted, 2 * before.cpu[4])  # of the first prediction, not of the present one
    after = model.costs(0)
    assert after.cpu[4] == pytest.approx(2 * before.cpu[4], rel=0.06)
    assert after.round_trip == pytest.approx(2 * before.round_trip, rel=0.06)
    assert after.remote[4] == pytest.approx(2 * before.remote[4], rel=0.06)
    assert (after.gpu, after.transfer) == (before.gpu, before.transfer)
    for _ in range(500):
        model.observe_transfer(model.costs(0).transfer, before.transfer / 2)
    assert model.costs(0).transfer == pytest.approx(before.transfer / 2, rel=0.06)
    assert model.costs(0).cpu[4] == pytest.approx(2 * before.cpu[4], rel=0.06)


def test_costs_stay_the_same_object_until_they_have_moved_by_some_per_cent() -> None:
    model = LatencyModel(MEASURED, [100], max_rows=4)
    first = model.costs(0)
    model.observe_cpu(0.01, 0.0102)
    assert model.costs(0) is first
    seen = {id(first): first}
    for _ in range(200):
        costs = model.costs(0)
        seen[id(costs)] = costs
        model.observe_cpu(costs.cpu[4], 2 * first.cpu[4])
    assert 5 < len(seen) < 20


def test_a_timeout_is_many_times_the_prediction_between_a_floor_and_the_cap() -> None:
    assert timeout_seconds(0.001, 60.0) == timeout_seconds(0.0, 60.0)
    assert 1 <= timeout_seconds(0.001, 60.0) <= 5
    assert 10 <= timeout_seconds(1.0, 60.0) <= 50
    assert timeout_seconds(100.0, 60.0) == timeout_seconds(math.inf, 60.0) == 60
    assert timeout_seconds(0.001, 0.5) == 0.5
