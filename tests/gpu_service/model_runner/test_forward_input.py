import pytest

from gpu_service.model_runner.forward_input import Logits, Span, is_rectangle


def _span(row: int, num_tokens: int, logits: Logits = Logits.LAST) -> Span:
    return Span(row=row, start=3, token_ids=[7] * num_tokens, length=20, logits=logits)


def test_a_span_ends_after_its_last_token() -> None:
    assert _span(0, 4).stop == 7


@pytest.mark.parametrize(("logits", "number"), [(Logits.NONE, 0), (Logits.LAST, 1), (Logits.ALL, 5)])
def test_logits_of_a_span(logits: Logits, number: int) -> None:
    assert _span(0, 5, logits).num_logits == number


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([_span(2, 5)], True),
        ([_span(2, 5, Logits.ALL)], True),
        ([_span(0, 1), _span(1, 1), _span(2, 1)], True),
        ([_span(0, 1), _span(2, 1)], False),
        ([_span(1, 1), _span(0, 1)], False),
        ([_span(0, 2), _span(1, 2)], False),
        ([_span(0, 1), _span(1, 2)], False),
        ([_span(0, 2), _span(1, 1)], False),
        ([_span(0, 1), _span(1, 1, Logits.NONE)], False),
    ],
)
def test_a_rectangle_is_one_piece_or_a_token_each_of_adjacent_rows(spans: list[Span], expected: bool) -> None:
    assert is_rectangle(spans) == expected
