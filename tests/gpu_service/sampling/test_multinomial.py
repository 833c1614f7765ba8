import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpu_service.sampling import multinomial
from gpu_service.sampling.multinomial import draw


@pytest.mark.parametrize("is_logarithm", [True, False])
def test_so_it_does_where_torch_is_asked_for_its_numbers(monkeypatch: pytest.MonkeyPatch, is_logarithm: bool) -> None:
    probabilities = torch.randn(3, 40_000, generator=torch.Generator().manual_seed(2)).softmax(dim=-1)
    monkeypatch.setattr(multinomial, "_IS_LOGARITHM", is_logarithm)
    ours, theirs = ([torch.Generator().manual_seed(seed) for seed in range(3)] for _ in range(2))
    for _ in range(20):
        expected = [
            int(torch.multinomial(row, 1, generator=each)) for row, each in zip(probabilities, theirs, strict=True)
        ]
        assert draw(probabilities, ours).tolist() == expected


def test_this_build_of_torch_computes_exponential_numbers_as_logarithms() -> None:
    """If it does not, tokens are still right, but drawing takes three times as long."""
    assert multinomial._IS_LOGARITHM


@given(rows=st.integers(1, 5), vocab=st.integers(1, 3000), seed=st.integers(0, 2**40), hidden=st.floats(0, 0.99))
def test_each_row_draws_what_multinomial_draws_with_its_generator(
    rows: int, vocab: int, seed: int, hidden: float
) -> None:
    """Several times in a row, so that both must leave the generators in the same state."""
    noise = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, vocab, generator=noise) * 3
    scores[:, 1:][torch.rand(rows, vocab - 1, generator=noise) < hidden] = -torch.inf
    probabilities = scores.softmax(dim=-1)
    before = probabilities.clone()
    ours, theirs = ([torch.Generator().manual_seed(seed + row) for row in range(rows)] for _ in range(2))
    for _ in range(4):
        expected = [
            int(torch.multinomial(row, 1, generator=generator))
            for row, generator in zip(probabilities, theirs, strict=True)
        ]
        assert draw(probabilities, ours).tolist() == expected
    assert torch.equal(probabilities, before)
