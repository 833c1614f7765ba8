"""Where the keys and values of packed tokens go, and what attention sees of them."""

import pytest
import torch

from gpu_service.model_runner.forward_input import Span
from gpu_service.model_runner.kv_cache import KvCache
from gpu_service.model_runner.packed.cache import Group, NotPackedError, PackedCache, groups_of

HEADS, DIM = 2, 4


def _span(row: int, start: int, num_tokens: int = 1) -> Span:
    return Span(row=row, start=start, token_ids=[7] * num_tokens, length=start + num_tokens)


def test_tokens_of_adjacent_rows_are_one_group_and_every_longer_span_is_one() -> None:
    groups = groups_of([_span(0, 5), _span(1, 9), _span(3, 2), _span(4, 0, 3), _span(5, 6)])
    assert groups == [
        Group(rows=slice(0, 2), tokens=slice(0, 2), positions=slice(5, 6), stop=10),
        Group(rows=slice(3, 4), tokens=slice(2, 3), positions=slice(2, 3), stop=3),
        Group(rows=slice(4, 5), tokens=slice(3, 6), positions=slice(0, 3), stop=3),
        Group(rows=slice(5, 6), tokens=slice(6, 7), positions=slice(6, 7), stop=7),
    ]
    assert [group.is_decode for group in groups] == [True, True, False, True]


def test_two_tokens_of_one_row_are_two_groups() -> None:
    assert [group.rows for group in groups_of([_span(0, 0), _span(0, 1)])] == [slice(0, 1)] * 2


def _packed(cache: KvCache, *spans: Span) -> PackedCache:
    positions = torch.cat([torch.arange(span.start, span.stop) for span in spans])
    return PackedCache(cache, groups_of(spans), positions)


def test_each_span_is_stored_in_its_row_and_sees_that_row_alone() -> None:
    cache = KvCache(3, 8)
    spans = [_span(0, 4), _span(1, 2), _span(2, 1, 3)]
    packed = _packed(cache, *spans)
    keys = torch.arange(5.0).view(1, 1, 5, 1).expand(1, HEADS, 5, DIM).clone()
    given = packed.update(keys, -keys, 0)
    stored, values = cache.memory_of(0, keys, keys)
    held = {
        (row, position): float(stored[row, 0, position, 0]) for row, position in stored[:, 0, :, 0].nonzero().tolist()
    }
    assert held == {(1, 2): 1, (2, 1): 2, (2, 2): 3, (2, 3): 4}
    assert torch.equal(values, -stored)
    seen = [(tuple(keys.shape), tuple(values.shape)) for _, keys, values in packed.visible(*given)]
    assert seen == [((2, HEADS, 5, DIM),) * 2, ((1, HEADS, 4, DIM),) * 2]


def test_attention_that_changes_what_it_got_or_does_not_ask_for_it_is_refused() -> None:
    states = torch.zeros(1, HEADS, 2, DIM)
    packed = _packed(KvCache(2, 4), _span(0, 0), _span(1, 0))
    keys, values = packed.update(states, states.clone(), 0)
    with pytest.raises(NotPackedError, match="changes"):
        list(packed.visible(keys.clone(), values))
    with pytest.raises(NotPackedError, match="attention functions"):
        packed.update(states, states, 1)
    list(packed.visible(keys, values))
    packed.check_seen()
    with pytest.raises(NotPackedError, match="changes"):
        list(packed.visible(keys, values))
    with pytest.raises(NotPackedError, match="length of the cache"):
        packed.get_seq_length()


@pytest.mark.parametrize("span", [_span(2, 0), _span(0, 4), _span(1, 2, 3)])
def test_what_does_not_fit_is_refused(span: Span) -> None:
    with pytest.raises(ValueError, match="exceed the cache"):
        _packed(KvCache(2, 4), _span(0, 0), span)
