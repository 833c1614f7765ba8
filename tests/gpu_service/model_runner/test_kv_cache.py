import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpu_service.model_runner.attention_masks import attention_mask
from gpu_service.model_runner.kv_cache import KvCache


def _states(requests: int, tokens: int, start: float, heads: int = 2, dim: int = 3) -> torch.Tensor:
    values = torch.arange(requests * heads * tokens * dim, dtype=torch.float32) + start
    return values.view(requests, heads, tokens, dim)


def test_a_prompt_then_single_tokens_of_rows_that_differ_in_length() -> None:
    cache = KvCache(num_rows=3, max_length=8)
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
    cache = KvCache(2, 8)
    cache.begin(0, torch.tensor([[0]]))
    keys, _ = cache.update(_states(1, 1, 0), _states(1, 1, 0), 0)
    again, _ = cache.update(_states(1, 1, 9), _states(1, 1, 9), 0)
    assert keys.data_ptr() == again.data_ptr()
    assert keys[0, 0, 0, 0] == 9


def test_keys_and_values_may_differ_in_shape_and_layers_are_apart() -> None:
    cache = KvCache(2, 4)
    cache.begin(1, torch.tensor([[0, 1]]))
    keys, values = cache.update(_states(1, 2, 0, heads=1, dim=5), _states(1, 2, 0, heads=3, dim=2), 0)
    assert (keys.shape, values.shape) == ((1, 1, 2, 5), (1, 3, 2, 2))
    other, _ = cache.update(_states(1, 2, 500), _states(1, 2, 500), 1)
    assert other.shape == (1, 2, 2, 3)
    assert cache.allocated_bytes == 4 * 2 * 4 * (5 + 3 * 2 + 2 * 3 + 2 * 3)


def _filled(cache: KvCache, *rows: int, tokens: int = 3) -> dict[int, torch.Tensor]:
    """Stores a prompt in each row; keys and values are those states and their negative."""
    states = {row: _states(1, tokens, 100.0 * (row + 1)) for row in rows}
    for row, each in states.items():
        cache.begin(row, torch.arange(tokens)[None])
        cache.update(each, -each, 0)
    return {row: each[0] for row, each in states.items()}


def _held(cache: KvCache, row: int, tokens: int = 3) -> torch.Tensor:
    """The keys of a row's first positions; its values must be their negative."""
    cache.begin(row, torch.tensor([[tokens]]))
    keys, values = cache.update(_states(1, 1, 0), -_states(1, 1, 0), 0)
    torch.testing.assert_close(values, -keys)
    return keys[0, :, :tokens]


def test_copy_takes_the_positions_it_is_told_from_one_row_to_another() -> None:
    cache = KvCache(3, 4)
    states = _filled(cache, 0, 2)
    cache.copy(2, 0, start=1, stop=3)
    torch.testing.assert_close(_held(cache, 0), torch.cat([states[0][:, :1], states[2][:, 1:]], 1))
    torch.testing.assert_close(_held(cache, 2), states[2])


def test_swap_exchanges_two_rows() -> None:
    cache = KvCache(2, 4)
    states = _filled(cache, 0, 1)
    cache.swap(0, 1, stop=3)
    torch.testing.assert_close(_held(cache, 0), states[1])
    torch.testing.assert_close(_held(cache, 1), states[0])


def test_clear_makes_zeros_of_what_is_not_a_number_so_that_a_masked_position_adds_nothing() -> None:
    cache = KvCache(2, 4)
    states = _filled(cache, 0)
    cache.begin(1, torch.arange(3)[None])
    cache.update(_states(1, 3, torch.nan), _states(1, 3, torch.nan), 0)
    cache.clear(1, stop=3)
    assert not _held(cache, 1).any()
    torch.testing.assert_close(_held(cache, 0), states[0])


def test_a_new_division_keeps_what_it_is_told() -> None:
    cache = KvCache(4, 6)
    states = _filled(cache, 1, 3)
    cache.reshape(2, 12, [(3, 0, 3), (1, 1, 3)])
    assert (cache.num_rows, cache.max_length) == (2, 12)
    torch.testing.assert_close(_held(cache, 0), states[3])
    torch.testing.assert_close(_held(cache, 1), states[1])
    cache.begin(1, torch.tensor([[11]]))
    with pytest.raises(ValueError, match="exceed the cache"):
        cache.reshape(3, 9, [])


def test_memory_is_known_after_one_token_and_taken_as_it_is_said() -> None:
    cache = KvCache(8, 4096)
    cache.set_capacity(1)
    cache.begin(0, torch.tensor([[0]]))
    for layer in range(2):
        cache.update(_states(1, 1, 0, heads=1, dim=5), _states(1, 1, 0, heads=3, dim=2), layer)
    token_bytes = 2 * 4 * (5 + 3 * 2)
    assert (cache.token_bytes, cache.allocated_bytes) == (token_bytes, token_bytes)
    cache.set_capacity(20)
    cache.reshape(4, 5, [])
    assert cache.allocated_bytes == 20 * token_bytes
    cache.begin(0, torch.tensor([[4], [4], [4], [4]]))
    keys, _ = cache.update(_states(4, 1, 0, heads=1, dim=5), _states(4, 1, 0, heads=3, dim=2), 0)
    assert keys.shape == (4, 1, 5, 5)


@pytest.mark.parametrize(
    ("first_row", "positions"),
    [(0, [[8]]), (2, [[0], [0]]), (0, [[0, 1], [0, 1]])],
    ids=["beyond the length", "beyond the rows", "several tokens of several sequences"],
)
def test_what_does_not_fit_is_refused(first_row: int, positions: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r"exceed the cache|one token each"):
        KvCache(3, 8).begin(first_row, torch.tensor(positions))


@given(starts=st.lists(st.integers(0, 6), min_size=1, max_size=4), window=st.none() | st.integers(1, 4))
def test_a_query_sees_itself_and_what_came_before_within_the_window(starts: list[int], window: int | None) -> None:
    positions = torch.tensor([[start, start + 1] for start in starts])
    length = int(positions.max()) + 1
    mask = attention_mask(positions, length, window)
    for row, pair in enumerate(positions.tolist()):
        for query, position in enumerate(pair):
            first = 0 if window is None else max(0, position - window + 1)
            assert mask[row, 0, query].nonzero().flatten().tolist() == list(range(first, position + 1))
