import pytest

from fiddler.v1 import experts_pb2, tensor_pb2
from gpu_service.errors import FlagError
from gpu_service.settings import Settings
from gpu_service.startup.chunks import max_rows, prefill_chunks

_ROW_BYTES = 4096 * 2 + 64 * 8
_VOCAB = 32_000


def _experts(max_rows: int = 16384, max_message_bytes: int = 2**26) -> experts_pb2.DescribeResponse:
    return experts_pb2.DescribeResponse(
        layers=[experts_pb2.MoeLayer(hidden_size=4096)],
        dtype=tensor_pb2.DTYPE_BFLOAT16,
        limits=experts_pb2.Limits(max_rows=max_rows, max_experts_per_row=64, max_message_bytes=max_message_bytes),
    )


def _settings(**more: object) -> Settings:
    return Settings.model_validate({"model": "/nowhere", **more})


@pytest.mark.parametrize(
    ("asked", "copies_experts", "expected"),
    [
        ({}, True, (512, 4096)),
        ({}, False, (512, 512)),
        ({"prefill_chunk": 8000}, True, (7710, 7710)),
        ({"prefill_chunk_alone": 1000}, False, (512, 1000)),
        ({"prefill_chunk_alone": 100}, True, (512, 512)),
        ({"prefill_chunk_alone": 10**6}, True, (512, 7710)),
        ({"max_message_bytes": 2**20, "max_slots": 4}, True, (120, 120)),
    ],
)
def test_chunks_grow_where_experts_are_copied_and_fit_a_message(
    asked: dict[str, object], copies_experts: bool, expected: tuple[int, int]
) -> None:
    chunks = prefill_chunks(_experts(), _settings(**asked), copies_experts=copies_experts, vocab_size=_VOCAB)
    assert (chunks.with_others, chunks.alone) == expected
    limit = _settings(**asked).max_message_bytes
    assert chunks.alone * _ROW_BYTES < limit


def test_the_other_side_bounds_them_too() -> None:
    for experts, expected in ((_experts(max_rows=700), (512, 700)), (_experts(max_message_bytes=2**22), (481, 481))):
        chunks = prefill_chunks(experts, _settings(), copies_experts=True, vocab_size=_VOCAB)
        assert (chunks.with_others, chunks.alone) == expected


@pytest.mark.parametrize(("vocab_size", "expected"), [(32_000, 524), (2**20, 16), (2**30, 1)])
def test_the_logits_of_a_chunk_take_64_mib(vocab_size: int, expected: int) -> None:
    chunks = prefill_chunks(_experts(), _settings(), copies_experts=False, vocab_size=vocab_size)
    assert chunks.logprobs == expected


def test_a_message_must_hold_a_row_for_each_slot() -> None:
    with pytest.raises(FlagError, match=r"^--max-slots: a decode step has up to 16 rows, and a message holds 10; "):
        max_rows(_experts(max_rows=10), _settings())


@pytest.mark.parametrize(("most_scored", "alone"), [(None, 4096), (2048, 2048), (2, 16)])
def test_chunks_are_as_small_as_the_scores_of_eager_attention_demand(most_scored: int | None, alone: int) -> None:
    """A decode step has up to 16 rows in any case."""
    chunks = prefill_chunks(_experts(), _settings(), copies_experts=True, vocab_size=_VOCAB, most_scored=most_scored)
    assert chunks.alone == alone
