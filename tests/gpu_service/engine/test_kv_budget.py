import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_service.engine import kv_budget
from gpu_service.engine.kv_budget import GIB, KvBudget
from gpu_service.errors import FlagError, NeverFitsError
from gpu_service.sampling.parameters import BeamParameters
from tests.support.model_of_cache import budget_of
from tests.support.requests import request_of


def test_all_slots_and_the_whole_context_where_memory_allows() -> None:
    budget = KvBudget.resolve(1.0, token_bytes=1024, max_rows=8, max_length=100, free_bytes=0)
    assert (budget.num_tokens, budget.num_bytes, budget.shape(1, 1)) == (800, 800 * 1024, (8, 100))


def test_memory_that_was_said_bounds_it() -> None:
    budget = KvBudget.resolve(0.5, token_bytes=2**20, max_rows=8, max_length=4096, free_bytes=0)
    assert (budget.num_tokens, budget.num_bytes) == (512, GIB // 2)


def test_auto_takes_a_share_of_what_is_free() -> None:
    budget = KvBudget.resolve("auto", token_bytes=100, max_rows=8, max_length=4096, free_bytes=80_000)
    assert budget.num_bytes == 80_000 * kv_budget.AUTO_SHARE


def test_memory_for_nothing_is_refused_by_the_flags_name() -> None:
    with pytest.raises(FlagError, match=r"^--kv-memory: 107374 bytes do not hold two tokens of 100000 bytes each$"):
        KvBudget.resolve(0.0001, token_bytes=100_000, max_rows=8, max_length=4096, free_bytes=0)


def test_states_of_all_rows_come_before_tokens() -> None:
    budget = KvBudget.resolve(1.0, token_bytes=2**20, max_rows=8, max_length=4096, free_bytes=0, row_bytes=2**26)
    assert (budget.num_tokens, budget.num_bytes) == (512, GIB)
    few = KvBudget.resolve(1.0, token_bytes=1024, max_rows=8, max_length=100, free_bytes=0, row_bytes=2**20)
    assert (few.num_tokens, few.num_bytes) == (800, 800 * 1024 + 8 * 2**20)
    with pytest.raises(FlagError, match=r"of 1048576 bytes each in addition to the states of 16 rows"):
        KvBudget.resolve(1.0, token_bytes=2**20, max_rows=16, max_length=4096, free_bytes=0, row_bytes=2**26)


@given(
    max_rows=st.integers(1, 40),
    max_length=st.integers(2, 600),
    share=st.floats(0.01, 1),
    rows=st.integers(1, 50),
    length=st.integers(1, 700),
)
def test_a_shape_holds_what_was_asked_and_no_more_than_there_is(
    max_rows: int, max_length: int, share: float, rows: int, length: int
) -> None:
    budget = budget_of(max_rows, max_length, max(2, int(share * max_rows * max_length)))
    shape = budget.shape(rows, length)
    if shape is None:
        assert rows > max_rows or length > max_length or rows * length > budget.num_tokens
        return
    assert rows <= shape[0] <= max_rows
    assert length <= shape[1] <= max_length
    assert shape[0] * shape[1] <= budget.num_tokens


def test_too_many_rows_are_told_by_the_field_that_asks_for_them() -> None:
    budget = budget_of(4, 100)
    for request, field in (
        (request_of([1], n=5), "n"),
        (request_of([1], beam=BeamParameters(6)), "beam_search.num_beams"),
    ):
        with pytest.raises(NeverFitsError, match=r"at most 4 .* \(--max-slots\), got \d") as caught:
            budget.check(request)
        assert caught.value.field == field


def test_too_much_memory_is_told_with_the_numbers() -> None:
    budget = KvBudget(num_tokens=100, token_bytes=1000, max_rows=4, max_length=100)
    budget.check(request_of([1] * 10, max_tokens=40, n=2))
    with pytest.raises(NeverFitsError) as caught:
        budget.check(request_of([1] * 10, max_tokens=41, n=2))
    assert caught.value.field == "max_tokens"
    for part in (
        "10 tokens and 41 more, in 2 rows",
        "102000 bytes",
        "100000 are available",
        "room for 40 after the prompt",
    ):
        assert part in str(caught.value)
