"""Maps fit the screen and hide no hot expert."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.top.heat import Cell, Fit, cells, colour, is_light, layer_groups, scale, shares


@given(num_experts=st.integers(1, 1024), columns=st.integers(1, 400))
def test_a_map_fits_its_columns_and_holds_every_expert(num_experts: int, columns: int) -> None:
    fit = Fit.of(num_experts, columns)
    assert fit.columns <= columns
    assert (fit.num_cells - 1) * fit.experts_per_cell < num_experts <= fit.num_cells * fit.experts_per_cell
    assert num_experts > columns or fit.experts_per_cell == 1


@given(num_layers=st.integers(1, 100), rows=st.integers(1, 200))
def test_layers_fit_their_rows_and_each_has_one(num_layers: int, rows: int) -> None:
    groups = layer_groups(num_layers, rows)
    assert len(groups) <= rows
    assert [layer for group in groups for layer in group] == list(range(num_layers))


def test_no_room_at_all_is_still_a_row() -> None:
    assert layer_groups(48, -3) == [range(48)]
    assert len(layer_groups(48, None)) == 48


def test_shares_are_over_the_even_one() -> None:
    assert shares([3, 1, 0, 0]) == [3.0, 1.0, 0.0, 0.0]
    assert shares([0, 0]) is None
    assert shares(None) is None


def test_a_cell_shows_its_hottest_expert_and_how_many_are_resident() -> None:
    row = cells([[1.0, 3.0, 0.0], [2.0, 0.5, 0.25]], resident=[[0, 1], [0]], num_experts=3, experts_per_cell=2)
    assert row == [Cell(3.0, 0.75), Cell(0.25, 0.0)]
    assert cells([None], resident=[None], num_experts=3, experts_per_cell=3) == [Cell(None, None)]


def test_colours_get_lighter_all_the_way() -> None:
    brightness = [sum(colour(step / 20, 1.0)) for step in range(21)]
    assert brightness == sorted(brightness)
    assert colour(5.0, 1.0) == colour(1.0, 1.0)
    assert not is_light(colour(0.0, 1.0))
    assert is_light(colour(1.0, 1.0))


def test_the_scale_ends_at_the_hottest_but_not_below_twice_the_even_share() -> None:
    assert scale([[1.0, 1.0], None]) == 2.0
    assert scale([[0.5, 6.5], None, [3.0]]) == pytest.approx(6.5)
