"""The processors of our own against those of transformers."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import SequenceBiasLogitsProcessor, TopPLogitsWarper

from gpu_service.sampling.logits_processors import CPU, OccurrencePenalties, TokenBias, TopP


def _check(top_p: float, scores: torch.Tensor) -> None:
    before = scores.clone()
    warped = TopP(top_p)(None, scores)
    assert torch.equal(warped, TopPLogitsWarper(top_p)(None, scores))
    assert torch.equal(scores, before)


@given(
    top_p=st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])),
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 4),
    vocab=st.integers(1, 400),
    width=st.sampled_from([0.1, 1.0, 5.0, 50.0]),
    levels=st.sampled_from([0, 1, 2, 10]),
    hidden=st.floats(0, 0.9),
)
def test_every_bit_is_as_transformers_has_it(
    top_p: float, seed: int, rows: int, vocab: int, width: float, levels: int, hidden: float
) -> None:
    """Even if many logits are equal, and if others were ruled out before."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, vocab, generator=generator) * width
    if levels:
        scores = (scores * levels / width).round()
    scores[:, 1:][torch.rand(rows, vocab - 1, generator=generator) < hidden] = -torch.inf
    _check(top_p, scores)


@pytest.mark.parametrize("top_p", [0.1, 0.9, 0.999])
def test_so_it_is_with_a_vocabulary_of_usual_size(top_p: float) -> None:
    scores = torch.randn(3, 50_000, generator=torch.Generator().manual_seed(1)) * 3
    _check(top_p, scores)
    _check(top_p, scores.to(torch.bfloat16).float())  # many are equal


@given(
    top_p=st.floats(0, 1),
    seed=st.integers(0, 2**32),
    vocab=st.integers(1, 400),
    levels=st.sampled_from([1, 2, 10, 50]),
)
def test_where_equals_may_differ_as_many_are_kept_and_the_last_of_them(
    top_p: float, seed: int, vocab: int, levels: int
) -> None:
    scores = (torch.randn(3, vocab, generator=torch.Generator().manual_seed(seed)) * levels).round()
    kept = TopP(top_p, same_of_equals=False)(None, scores)
    theirs = TopPLogitsWarper(top_p)(None, scores)
    assert torch.equal(kept.sort(dim=-1)[0], theirs.sort(dim=-1)[0])
    for row, before in zip(kept, scores, strict=True):
        inside = row > -torch.inf
        assert torch.equal(row[inside], before[inside])
        border = (before == row[inside].min()).nonzero()[:, 0]
        assert border[inside[border]].tolist() == border[-int(inside[border].sum()) :].tolist()


def test_what_is_not_float32_is_transformers_own() -> None:
    _check(0.7, torch.randn(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))


def test_a_bias_is_that_of_transformers_and_of_many_tokens_at_once() -> None:
    scores = torch.randn(3, 5000, generator=torch.Generator().manual_seed(1))
    biases = [(token, token / 50 - 50) for token in range(0, 5000, 2)]
    sequences: Any = {(token,): bias for token, bias in biases}  # its annotation lacks the dict
    theirs: Any = SequenceBiasLogitsProcessor(sequences)
    expected = theirs(None, scores)
    assert torch.equal(TokenBias(biases, CPU)(None, scores), expected)


def test_occurrences_are_counted_in_what_was_generated() -> None:
    penalties = OccurrencePenalties(0.5, 0.25, preceding_length=2)
    scores = penalties(torch.tensor([[0, 1, 1, 2, 1]]), torch.zeros(1, 4))
    assert scores.tolist() == [[0.0, -1.25, -0.75, 0.0]]
