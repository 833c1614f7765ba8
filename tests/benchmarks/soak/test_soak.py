"""A short soak of a pair in real processes, with kills; and a result that differs ends it with status 1."""

import json
from pathlib import Path

import pytest
import typer

from benchmarks.soak import __main__ as soak
from benchmarks.soak.requests import Collector, Result
from tests.support.pairs import WarmPair

MINUTES = 0.05


def _values(capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return {line["name"]: line["value"] for line in lines if "value" in line}


def test_every_answer_of_a_soak_is_the_one_that_a_request_has_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak, "Pair", WarmPair)
    soak.main(minutes=MINUTES, seed=0, kill_seconds=1.0, tiny=True)
    values = _values(capsys)
    assert values["soak.tiny.right"] > 0
    assert [values[f"soak.tiny.{bad}"] for bad in ("wrong", "hung", "errors")] == [0, 0, 0]
    assert values["soak.tiny.gpu_service.peak"] > 100


def test_a_soak_with_a_wrong_answer_fails(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    right = Collector.result
    count = 0

    def sometimes_wrong(collector: Collector) -> Result:
        nonlocal count
        count += 1
        return () if count % 30 == 0 else right(collector)

    monkeypatch.setattr(soak, "Pair", WarmPair)
    monkeypatch.setattr(Collector, "result", sometimes_wrong)
    with pytest.raises(typer.Exit) as left:
        soak.main(minutes=MINUTES, seed=0, kill_seconds=60.0, tiny=True, out=tmp_path / "soak.jsonl")
    assert left.value.exit_code == 1
    lines = [json.loads(line) for line in (tmp_path / "soak.jsonl").read_text().splitlines()]
    assert [line["value"] > 0 for line in lines if line["name"] == "soak.tiny.wrong"] == [True]
