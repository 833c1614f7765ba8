import pytest

from gpu_service.sampling.outputs import Ending, FinishReason


@pytest.mark.parametrize(
    ("token_id", "num_tokens", "reason"),
    [
        (7, 1, None),
        (1, 1, FinishReason.EOS),
        (2, 1, FinishReason.STOP),
        (3, 1, FinishReason.EOS),
        (7, 4, None),
        (7, 5, FinishReason.LENGTH),
        (2, 5, FinishReason.STOP),
        (1, 5, FinishReason.EOS),
    ],
)
def test_a_generation_ends_with_an_end_token_or_at_its_length(
    token_id: int, num_tokens: int, reason: FinishReason | None
) -> None:
    """An end token that comes last is the reason rather than the length; of both kinds, the model's own counts."""
    ending = Ending(5, eos_ids=frozenset([1, 3]), stop_ids=frozenset([2, 3]))
    assert ending.reason(token_id, num_tokens) is reason
    assert ending.end_ids == {1, 2, 3}
