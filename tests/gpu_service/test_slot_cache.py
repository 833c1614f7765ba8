import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpu_service.slot_cache import SlotCache, attention_mask


def _states(requests: int, tokens: int, start: float, heads: int = 2, dim: int = 3) -> torch.Tensor:
    values = torch.arange(requests * heads * tokens * dim, dtype=torch.float32) + start
    return values.view(requests, heads, tokens, dim)


def test_a_prompt_then_single_tokens_of_rows_that_differ_in_length() -> None:
    cache = SlotCache(num_slots=3, max_length=8)
    prompts = {0: _states(1, 5, 0), 1: _states(1, 2, 1000)}
    for row, states in prompts.items():
        cache.begin(row, torch.arange(states.shape[2])[None])
        cache.update(states, states, 0)
    cache.begin(0, torch.tensor([[5], [2]]))
    new = _states(2, 1, 5000)
    keys, values = cache.update(new, -new, 0)
    assert keys.shape == (2, 2, 6, 3)
    torch.testing.assert_close(keys[0], torch.cat([prompts[0][0], new[0]], 1))
    torch.testing.assert_close(keys[1, :, :3], torch.cat([prompts[1][0], new[1]], 1))
    torch.testing.assert_close(values[0, :, 5], -new[0, :, 0])


def test_what_attention_reads_is_a_view() -> None:
    cache = SlotCache(2, 8)
    cache.begin(0, torch.tensor([[0]]))
    keys, _ = cache.update(_states(1, 1, 0), _states(1, 1, 0), 0)
    again, _ = cache.update(_states(1, 1, 9), _states(1, 1, 9), 0)
    assert keys.data_ptr() == again.data_ptr()
    assert keys[0, 0, 0, 0] == 9


def test_keys_and_values_may_differ_in_shape_and_layers_are_apart() -> None:
    cache = SlotCache(2, 4)
    cache.begin(1, torch.tensor([[0, 1]]))
    keys, values = cache.update(_states(1, 2, 0, heads=1, dim=5), _states(1, 2, 0, heads=3, dim=2), 0)
    assert (keys.shape, values.shape) == ((1, 1, 2, 5), (1, 3, 2, 2))
    other, _ = cache.update(_states(1, 2, 500), _states(1, 2, 500), 1)
    assert other.shape == (1, 2, 2, 3)
    assert cache.allocated_bytes == 4 * 2 * 4 * (5 + 3 * 2 + 2 * 3 + 2 * 3)


def test_move_copies_a_row() -> None:
    cache = SlotCache(3, 4)
    states = _states(1, 3, 7)
    cache.begin(2, torch.arange(3)[None])
    cache.update(states, states, 0)
    cache.move(2, 0, 3)
    cache.begin(0, torch.tensor([[3]]))
    keys, _ = cache.update(_states(1, 1, 0), _states(1, 1, 0), 0)
    torch.testing.assert_close(keys[0, :, :3], states[0])


@pytest.mark.parametrize(
    ("first_row", "positions"),
    [(0, [[8]]), (2, [[0], [0]]), (0, [[0, 1], [0, 1]])],
    ids=["beyond the length", "beyond the slots", "several tokens of several requests"],
)
def test_what_does_not_fit_is_refused(first_row: int, positions: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r"exceed the cache|one token each"):
        SlotCache(3, 8).begin(first_row, torch.tensor(positions))


@given(starts=st.lists(st.integers(0, 6), min_size=1, max_size=4), window=st.none() | st.integers(1, 4))
def test_a_query_sees_itself_and_what_came_before_within_the_window(starts: list[int], window: int | None) -> None:
    positions = torch.tensor([[start, start + 1] for start in starts])
    length = int(positions.max()) + 1
    mask = attention_mask(positions, length, window)
    for row, pair in enumerate(positions.tolist()):
        for query, position in enumerate(pair):
            first = 0 if window is None else max(0, position - window + 1)
            assert mask[row, 0, query].nonzero().flatten().tolist() == list(range(first, position + 1))
