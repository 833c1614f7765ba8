"""--expert-format on both services as processes: converted once, served, and exactly what the result stands for."""

import json
from pathlib import Path
from typing import Any

import pytest

from client import Client, GenerationChunk
from tests.support import reference
from tests.support.converted import write_decoded
from tests.support.pairs import WarmPair, write_tiny

NUM_TOKENS = 12
FLAGS = ("--dtype", "float32", "--expert-format", "int4", "--log-format", "json")


def _events(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]


def test_both_services_serve_one_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = write_tiny(tmp_path / "tiny")
    log = tmp_path / "log"
    with (
        log.open("wb") as file,
        WarmPair(model, gpu_arguments=("--device", "cpu", *FLAGS), cpu_arguments=FLAGS, log=file) as pair,
        Client(pair.target) as client,
    ):
        chunks = list(client.generate(list(reference.PROMPTS[1]), max_tokens=NUM_TOKENS, temperature=0))
        assert client.model_info().name == "tiny"
    events = _events(log)
    (made,) = [entry for entry in events if entry["event"] == "experts converted"]
    assert [entry["directory"] for entry in events if entry["event"] == "converted experts found"] == [
        made["directory"]
    ]
    served = Path(made["directory"])
    assert served.is_relative_to(tmp_path / "cache")
    plain = write_decoded(served, model, tmp_path / "plain")
    expected, _ = reference.generate(reference.load(plain), reference.PROMPTS[1], NUM_TOKENS)
    assert [token for chunk in chunks if isinstance(chunk, GenerationChunk) for token in chunk.token_ids] == expected
