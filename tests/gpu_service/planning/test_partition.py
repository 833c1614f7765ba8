import random
from itertools import product

import pytest

from gpu_service.planning.partition import Sides, Split, best_split


def _best_seconds(sides: Sides) -> float:
    def seconds(choice: tuple[bool, ...]) -> float:
        def total(side: list[float], streamed: bool) -> float:
            return sum(value for value, here in zip(side, choice, strict=True) if here is streamed)

        remote = 0.0 if all(choice) else sides.round_trip + total(sides.remote, False)
        return max(remote, total(sides.copy, True), sides.resident + total(sides.compute, True))

    return min(seconds(choice) for choice in product([False, True], repeat=len(sides.remote)))


def _same_on_both(values: list[float]) -> Sides:
    """The sides are equal only if a subset of the values sums to half of them."""
    values = sorted(values, reverse=True)
    return Sides(values, [0.0] * len(values), values, round_trip=0.0, resident=0.0)


def test_a_subset_that_no_cut_finds_is_searched_for() -> None:
    split = best_split(_same_on_both([9, 7, 6, 5, 4, 3]))
    assert split.seconds == 17  # 9 + 5 + 3; cuts come to 18
    assert sorted(split.order or []) == list(range(6))


def test_of_experts_that_are_alike_all_may_be_streamed() -> None:
    # half is 7 + 7 + 1 or 6 + 6 + 3, and no other sum
    assert best_split(_same_on_both([7, 7, 6, 6, 3, 1])).seconds == 15


@pytest.mark.parametrize("num", [12, 16, 30, 60])
def test_even_shares_are_found_whatever_the_number(num: int) -> None:
    rng = random.Random(num)
    values = [rng.uniform(1, 10) for _ in range(num)]
    assert best_split(_same_on_both(values)).seconds <= 1.02 * sum(values) / 2


def test_one_huge_expert_goes_where_it_costs_least_and_the_others_balance_it() -> None:
    small = [1.0] * 40
    sides = Sides([100.0, *small], [3.0] * 41, [10.0, *small], round_trip=0.0, resident=0.0)
    split = best_split(sides)
    assert split.num_streamed >= 1
    assert split.seconds == 31  # 10 copies take 30


def test_copies_that_bind_and_computing_that_binds_are_balanced_at_once() -> None:
    rng = random.Random(1)
    for _ in range(40):
        num = 8
        copy, compute = ([rng.choice([0.1, 1.0, 3.0]) for _ in range(num)] for _ in range(2))
        sides = Sides(sorted((rng.uniform(0.5, 3) for _ in range(num)), reverse=True), copy, compute, 0.2, 0.5)
        assert best_split(sides).seconds <= 1.02 * _best_seconds(sides)


@pytest.mark.parametrize("seed", range(5))
def test_many_experts_come_near_a_bound_where_copies_and_computing_both_bind(seed: int) -> None:
    rng = random.Random(seed)
    copy, compute = ([rng.uniform(0.1, 1.0) for _ in range(80)] for _ in range(2))
    sides = Sides(sorted((rng.uniform(0.1, 2) for _ in range(80)), reverse=True), copy, compute, 0.0, 0.0)
    assert best_split(sides).seconds <= 1.02 * _bound(sides)


def _bound(sides: Sides) -> float:
    """A lower bound of the longest side: the weighted mean of all three, with the best weights of a grid."""
    steps, bound = 50, 0.0
    for x, y in product(range(steps + 1), repeat=2):
        remote, copy, compute = x / steps, y / steps, 1 - (x + y) / steps
        if compute >= 0:
            each = zip(sides.remote, sides.copy, sides.compute, strict=True)
            bound = max(bound, sum(min(remote * a, copy * b + compute * c) for a, b, c in each))
    return bound


def test_experts_that_are_alike_are_counted() -> None:
    sides = Sides([7.0] * 30, [1.0] * 15 + [2.0] * 15, [5.0] * 30, round_trip=3.0, resident=1.0)
    # 17 streamed: 86 on the GPU; 13 sent: 94; 18 streamed: 91 and 87
    assert best_split(sides).seconds == 91


def test_a_given_number_of_an_order_is_streamed() -> None:
    sides = Sides([4.0, 2.0, 1.0], [1.0, 2.0, 4.0], [0.5, 0.5, 0.5], round_trip=10.0, resident=1.0)
    split = Split(sides, [2, 0, 1], num_streamed=2)
    assert (split.remote_seconds, split.gpu_seconds) == (12.0, 5.0)
    assert Split(sides, num_streamed=3).remote_seconds == 0.0
