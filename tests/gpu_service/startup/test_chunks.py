import pytest

from fiddler.v1 import experts_pb2, tensor_pb2
from gpu_service.errors import FlagError
from gpu_service.settings import Settings
from gpu_service.startup.chunks import Chunks, max_rows

_ROW_BYTES = 4096 * 2 + 64 * 8


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
        ({}, True, Chunks(512, 4096)),
        ({}, False, Chunks(512, 512)),
        ({"prefill_chunk": 8000}, True, Chunks(7710, 7710)),
        ({"prefill_chunk_alone": 1000}, False, Chunks(512, 1000)),
        ({"prefill_chunk_alone": 100}, True, Chunks(512, 512)),
        ({"prefill_chunk_alone": 10**6}, True, Chunks(512, 7710)),
        ({"max_message_bytes": 2**20, "max_slots": 4}, True, Chunks(120, 120)),
    ],
)
def test_chunks_grow_where_experts_are_copied_and_fit_a_message(
    asked: dict[str, object], copies_experts: bool, expected: Chunks
) -> None:
    assert Chunks.resolve(_experts(), _settings(**asked), copies_experts) == expected
    limit = _settings(**asked).max_message_bytes
    assert expected.alone * _ROW_BYTES < limit


def test_the_other_side_bounds_them_too() -> None:
    assert Chunks.resolve(_experts(max_rows=700), _settings(), copies_experts=True) == Chunks(512, 700)
    assert Chunks.resolve(_experts(max_message_bytes=2**22), _settings(), copies_experts=True) == Chunks(481, 481)


def test_a_message_must_hold_a_row_for_each_slot() -> None:
    with pytest.raises(FlagError, match=r"^--max-slots: 16 rows at once, and a message holds 10$"):
        max_rows(_experts(max_rows=10), _settings())
