from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_service.planning.curve import Curve

_samples = st.lists(st.tuples(st.integers(1, 60), st.floats(1e-6, 100)), min_size=1, max_size=20)


def test_a_curve_goes_through_medians_straight_in_between_and_on_as_it_last_rose() -> None:
    curve = Curve([(2, 1.0), (2, 9.0), (2, 1.2), (6, 2.0), (10, 4.0)])
    assert [curve(rows) for rows in (0, 1, 2, 4, 6, 8, 10, 12)] == pytest.approx([0, 1.2, 1.2, 1.6, 2, 3, 4, 5])
    assert curve.table(12) == [curve(rows) for rows in range(13)]


def test_one_point_is_a_flat_curve() -> None:
    assert [Curve([(4, 2.0)])(rows) for rows in (0, 1, 4, 99)] == [0, 2, 2, 2]


def test_points_that_fall_become_their_mean() -> None:
    curve = Curve([(1, 1.0), (2, 4.0), (3, 3.0), (4, 2.0), (5, 7.0)])
    assert [curve(rows) for rows in range(1, 6)] == [1, 3, 3, 3, 7]


def test_a_mean_that_falls_below_its_neighbour_takes_it_in() -> None:
    curve = Curve([(1, 3.0), (2, 5.0), (3, 1.0)])
    assert [curve(rows) for rows in range(1, 4)] == [3, 3, 3]


def test_beyond_points_that_became_one_the_curve_rises_as_before_them() -> None:
    curve = Curve([(1, 1.0), (2, 2.0), (4, 7.0), (6, 5.0)])
    assert curve(8) == pytest.approx(6 + 2 * (6 - 2) / (6 - 2))


@given(_samples)
def test_no_curve_ever_falls(samples: list[tuple[int, float]]) -> None:
    table = Curve(samples).table(80)
    assert table[0] == 0
    assert all(later >= earlier for earlier, later in pairwise(table))


@given(_samples, st.lists(st.floats(-1, 1), min_size=20, max_size=20))
def test_no_other_curve_that_never_falls_is_nearer_to_the_medians(
    samples: list[tuple[int, float]], shifts: list[float]
) -> None:
    medians = dict(samples)  # one for each number of rows
    curve = Curve(medians.items())

    def distance(values: list[float]) -> float:
        return sum((value - medians[rows]) ** 2 for rows, value in zip(sorted(medians), values, strict=True))

    ours = [curve(rows) for rows in sorted(medians)]
    other = sorted(value + shift for value, shift in zip(ours, shifts, strict=False))
    assert distance(ours) <= distance(other) * (1 + 1e-9) + 1e-9


def test_the_fit_error_is_that_of_points_which_the_curve_was_not_told_of() -> None:
    line = [(1, 1.0), (2, 2.0), (4, 4.0), (8, 8.0)]
    assert Curve(line).fit_error == pytest.approx(0)
    assert Curve([(1, 1.0), (2, 3.0), (3, 3.0)]).fit_error == pytest.approx(1 / 3)  # 2 between 1 and 3, and it is 3
    assert Curve([(1, 1.0), (2, 2.0)]).fit_error == 0
