"""A soak is flat unless memory, descriptors or threads grow between its second and its last quarter."""

import pytest

from benchmarks.soak.processes import Samples


def _samples(mib: list[float], descriptors: list[float] | None = None) -> Samples:
    seconds = [5.0 * number for number in range(len(mib))]
    return Samples(seconds, mib, descriptors or [20.0] * len(mib), [30.0] * len(mib))


def test_growth_before_the_second_quarter_is_a_warm_up() -> None:
    assert _samples([*range(100, 600, 20), *[600.0] * 75]).problems() == []


def test_growth_after_it_is_named() -> None:
    assert _samples([400.0 + number for number in range(100)]).problems() == ["437 MiB grew to 487"]
    descriptors = [20.0] * 60 + [40.0] * 40
    assert _samples([400.0] * 100, descriptors).problems() == ["20 descriptors grew to 40"]


def test_the_slope_is_that_after_the_first_quarter() -> None:
    grown = [*range(100, 600, 20), *(600 + 0.5 * number for number in range(75))]
    assert _samples(grown).mib_per_hour() == pytest.approx(360)
    assert _samples([400.0]).mib_per_hour() == 0
