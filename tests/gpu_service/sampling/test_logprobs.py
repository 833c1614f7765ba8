import torch
from hypothesis import given
from hypothesis import strategies as st

from gpu_service.sampling import logprobs


@given(rows=st.lists(st.tuples(st.integers(0, 19), st.none() | st.integers(0, 25)), min_size=1, max_size=5))
def test_each_row_is_told_what_it_wants(rows: list[tuple[int, int | None]]) -> None:
    logits = torch.randn(len(rows), 20, generator=torch.Generator().manual_seed(len(rows))) * 3
    found = logprobs.of_rows(logits, [token for token, _ in rows], [num_top for _, num_top in rows])
    for (token, num_top), values, row in zip(rows, torch.log_softmax(logits, -1).tolist(), found, strict=True):
        assert row.token_id == token
        if num_top is None:
            assert (row.logprob, row.top) == (None, ())
            continue
        assert row.logprob == values[token]
        likeliest = sorted(range(20), key=lambda each: -values[each])[:num_top]
        assert row.top == tuple((each, values[each]) for each in likeliest)
