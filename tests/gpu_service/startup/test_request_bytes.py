"""The largest message of a caller follows the context, and never falls below gRPC's own default."""

from pathlib import Path
from typing import Any

import pytest

from gpu_service.settings import Settings
from gpu_service.startup.request_bytes import max_request_bytes

MIB = 2**20
LONG = {"max_position_embeddings": 131_072}


@pytest.mark.parametrize(
    ("asked", "config", "expected"),
    [
        ({}, {"max_position_embeddings": 4096}, 4 * MIB),
        ({}, {}, 4 * MIB),
        ({}, LONG, 16 * MIB),
        ({}, {"text_config": LONG}, 16 * MIB),
        ({}, {"max_position_embeddings": 32_768, "rope_scaling": {"factor": 4.0}}, 16 * MIB),
        ({"max_context": 65_536}, LONG, 8 * MIB),
        ({"max_context": 10**6}, LONG, 16 * MIB),
        ({"max_context": 65_536}, {}, 8 * MIB),
        ({}, {"max_position_embeddings": 10**9}, 64 * MIB),
        ({"max_message_bytes": 8 * MIB}, LONG, 8 * MIB),
        ({"max_request_bytes": 10 * MIB}, LONG, 10 * MIB),
    ],
)
def test_the_limit_follows_the_context(asked: dict[str, Any], config: dict[str, Any], expected: int) -> None:
    settings = Settings(model=Path("m"), max_context=asked.pop("max_context", "auto"), **asked)
    assert max_request_bytes(settings, config) == expected


@pytest.mark.parametrize("value", ["many", "1", str(2**31)])
def test_another_value_is_refused(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        Settings.load(["--model", "m", "--max-request-bytes", value])
    assert "--max-request-bytes: must be" in capsys.readouterr().err
