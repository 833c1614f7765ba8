"""The command, against a pair that runs; and its mistakes."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from fiddler_checkup.bench.__main__ import main
from pair import Pair
from tests.support.pairs import WarmPair, start, write_tiny


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    model = write_tiny(tmp_path_factory.mktemp("bench") / "model")
    with start(model, "--max-slots", "2") as running:
        yield running


def _arguments(pair: Pair) -> list[str]:
    return [
        *("--target", pair.target, "--gpu-metrics", f"127.0.0.1:{pair.gpu_metrics_port}"),
        *("--cpu-metrics", f"127.0.0.1:{pair.cpu_metrics_port}", "--prompt", "24", "--generated", "8"),
        *("--streams", "1,2,4", "--beams", "2", "--rounds", "2"),
    ]


def test_a_server_is_measured(pair: Pair, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*_arguments(pair), "--json"]) == 0
    output = capfd.readouterr()
    told = json.loads(output.out)
    assert [test["name"] for test in told["tests"]] == ["prefill 24", "decode 8", "decode 8 x 2", "decode 8, 2 beams"]
    assert all(test["lowest"] <= test["tokens_per_second"] <= test["highest"] for test in told["tests"])
    assert all(test["tokens_per_second"] > 1 for test in told["tests"])
    assert [test["reached"] is None for test in told["tests"]] == [True, False, False, False]
    parts = told["tests"][1]["seconds_by_part"]
    assert 0 < sum(parts.values()) <= 1.2 / told["tests"][1]["tokens_per_second"] * 2
    assert "experts computed by the CPU expert service" in parts
    assert "tokens/s are" in told["explanation"][0]
    assert "4 streams are left out: the server computes at most 2 (--max-slots)" in output.err


def test_the_table_has_a_row_for_each_test(pair: Pair, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*_arguments(pair), "--rounds", "1", "--streams", "1", "--beams", "0"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("model (mixtral, ")
    table = [line for line in lines if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in table] == ["test", "-" * 12, "prefill 24", "decode 8"]
    assert len({len(line) for line in table}) == 1
    assert lines[-1].startswith("The largest part is ")


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        ([], 2, "give MODEL, or --target of a server that runs, and not both"),
        (["a", "--target", "127.0.0.1:1"], 2, "give MODEL, or --target"),
        (["{tmp}/a.gguf"], 1, "{tmp}/a.gguf is a GGUF file"),
        (["--target", "127.0.0.1:1"], 1, "nothing serves on 127.0.0.1:1; start one"),
        (["--target", "nowhere"], 2, "target: 'nowhere' is not an address"),
        (["a", "--streams", "1,x"], 2, "must be numbers from 1 to 1024 with commas between, got '1,x'"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str], status: int, text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.gguf").touch()
    assert main([argument.format(tmp=tmp_path) for argument in arguments]) == status
    error = capfd.readouterr().err
    assert text.format(tmp=tmp_path) in error
    assert error.startswith("fiddler_checkup.bench: ")
    assert error.count("\n") == 1


def test_a_model_that_cannot_be_served_says_why(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pair.Pair", WarmPair)
    model = write_tiny(tmp_path / "model")
    (model / "config.json").write_text("{")
    assert main([str(model)]) == 1
    *_, last = capfd.readouterr().err.splitlines()
    assert last.startswith(f"fiddler_checkup.bench: {model}/config.json is not JSON")
