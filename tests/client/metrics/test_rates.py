"""Growth over restarts, and its quantiles, compared with numbers computed by hand."""

import pytest

from client.metrics.rates import Growth, increase, quantiles
from client.metrics.scrape import parse


def _histogram(**counts: float) -> Growth:
    """The growth of a histogram with these cumulative counts by bound; le01 is the bound 0.1."""
    bounds = {"le01": "0.1", "le05": "0.5", "le1": "1.0", "inf": "+Inf"}
    text = "".join(f'h_bucket{{le="{bounds[name]}"}} {count}\n' for name, count in counts.items())
    return increase(parse("", 0.0), parse(text, 2.0))


def test_growth_is_by_series_and_time() -> None:
    growth = increase(parse('x{a="1"} 3\nx{a="2"} 5\n', 1.0), parse('x{a="1"} 4\nx{a="2"} 5\nx{a="3"} 2\n', 3.5))
    assert growth.seconds == 2.5
    assert growth.by("x", "a") == {("1",): 1, ("2",): 0, ("3",): 2}


def test_a_counter_that_fell_counts_from_nothing() -> None:
    assert increase(parse("x 10\n", 0.0), parse("x 4\n", 1.0)).value("x") == 4


def test_a_process_that_started_anew_counts_from_nothing_even_where_it_has_counted_further() -> None:
    before, after = "process_start_time_seconds 1\nx 10\n", "process_start_time_seconds 2\nx 14\n"
    assert increase(parse(before, 0.0), parse(after, 1.0)).value("x") == 14


def test_quantiles_are_linear_within_a_bucket() -> None:
    found = quantiles(_histogram(le01=2, le05=8, le1=10, inf=10), "h")
    assert found is not None
    # Rank 5 of 10 is the 3rd of the 6 from 0.1 to 0.5; rank 9 is the 1st of the 2 from 0.5 to 1.
    assert (found.p50, found.p90, found.p99) == pytest.approx((0.3, 0.75, 0.975))


def test_a_quantile_past_the_last_bound_is_that_bound() -> None:
    found = quantiles(_histogram(le01=0, le05=0, le1=5, inf=10), "h")
    assert found is not None
    assert (found.p50, found.p99) == (1.0, 1.0)


def test_what_was_counted_before_is_left_out() -> None:
    before = 'h_bucket{le="0.1"} 100\nh_bucket{le="0.5"} 100\nh_bucket{le="+Inf"} 100\n'
    after = 'h_bucket{le="0.1"} 100\nh_bucket{le="0.5"} 104\nh_bucket{le="+Inf"} 104\n'
    found = quantiles(increase(parse(before, 0.0), parse(after, 1.0)), "h")
    assert found is not None
    assert found.p50 == pytest.approx(0.3)


def test_nothing_counted_and_nothing_exported_have_no_quantiles() -> None:
    assert quantiles(_histogram(le01=0, inf=0), "h") is None
    assert quantiles(_histogram(), "h") is None
