import math

import pytest
import torch

from gpu_service.sampling.logits import largest, non_finite_rows, rows_of, with_rows


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_rows_with_what_is_not_a_finite_number_are_found(value: float) -> None:
    logits = torch.randn(5, 100) * 1e4
    assert non_finite_rows(logits) == []
    logits[1, 7] = logits[4, 99] = value
    assert non_finite_rows(logits) == [1, 4]
    logits[1, 8] = -value
    assert non_finite_rows(logits) == [1, 4]
    assert non_finite_rows(logits[:0]) == []


def test_rows_come_in_the_order_that_is_asked_for_and_adjacent_ones_as_a_view() -> None:
    logits = torch.arange(12.0).view(4, 3)
    assert rows_of(logits, [1, 2]).data_ptr() == logits[1].data_ptr()
    for rows in ([1, 2], [2, 1], [3, 0, 1], [0]):
        torch.testing.assert_close(rows_of(logits, rows), logits[torch.tensor(rows)])


def test_rows_are_replaced_in_a_copy_and_nothing_is_copied_where_none_is() -> None:
    logits = torch.zeros(3, 2)
    scores = with_rows(logits, {1: torch.ones(1, 2)})
    assert scores.tolist() == [[0, 0], [1, 1], [0, 0]]
    assert not logits.any()
    assert with_rows(logits, {}) is logits


@pytest.mark.parametrize("levels", [1, 2, 50, 10**9])
def test_the_largest_is_torchs_and_the_first_of_several(levels: int) -> None:
    values = (torch.randn(20, 5000, generator=torch.Generator().manual_seed(levels)) * levels).round() / levels
    values[3:5] = -torch.inf
    values[7, 40:50] = torch.inf
    assert torch.equal(largest(values), values.argmax(dim=-1))
