"""The comparison's own arithmetic, workers and files; the other engines are not installed for tests."""

import json
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
import torch
from safetensors import safe_open

from benchmarks.harness.results import Report
from benchmarks.harness.targets import Judge
from benchmarks.peers import __main__ as peers
from benchmarks.peers import gguf_file, systems
from benchmarks.peers.environment import Environment, PeerError
from benchmarks.peers.models import RECIPES, Models, Shape
from benchmarks.peers.systems import ROOT, Generated, Worker
from benchmarks.peers.table import Measured, table
from gpu_service.startup import read_bandwidth

FORMATS = {
    "fiddler_bf16": "bf16",
    "fiddler_int8": "int8, dense int8",
    "fiddler_int4": "int4, dense int8",
    "fiddler_int4_dense_int4": "int4, dense int4",
    "ktransformers_int4": "int4, dense bf16",
    "llama_cpp_Q4_K": "Q4_K",
    "transformers": "bf16",
}


def test_the_table_has_a_line_for_each_system_and_says_why_others_are_missing() -> None:
    measured = Measured("bf16", [9.0, 10.0, 11.0], [400.0] * 3, memory_bytes=6 * 10**9, weight_bytes=10**9)
    lines = table({"fiddler_bf16": measured}, {"llama_cpp_BF16": "no compiler"}, 2e10).splitlines()
    assert [cell.strip() for cell in lines[1].split("  ") if cell] == [
        *("fiddler_bf16", "bf16", "10 (9 to 11)", "0.50", "400 (400 to 400)", "6.0")
    ]
    assert lines[2] == "llama_cpp_BF16: not measured: no compiler"
    assert {name: peers._format_of(name) for name in FORMATS} == FORMATS


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    """Counts on from the last token of the prompt, and ends by SIGKILL after 7."""
    script = tmp_path / "worker.py"
    script.write_text(
        "import os\nfrom benchmarks.peers.answering import answer, libraries_kept_silent\n"
        "with libraries_kept_silent():\n    os.write(1, b'a library says so')\n"
        "answer(lambda: None, lambda ids: ids[-1] + 1 if ids[-1] < 7 else os.kill(os.getpid(), 9))\n"
    )
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} {script}\n")
    python.chmod(0o755)
    return Worker(python, "any")


def test_a_worker_answers_and_tells_how_it_ended(worker: Worker) -> None:
    with worker:
        generated = worker.generate([3], 3)
        assert generated.token_ids == [4, 5, 6]
        assert generated.first_seconds > 0
        assert worker.memory_bytes() > 2**20
        with pytest.raises(PeerError, match=r"it ended with signal 9: a library says so"):
            worker.generate([6], 3)


def test_every_tensor_of_a_checkpoint_has_its_place_in_gguf(tmp_path: Path) -> None:
    models = Models(tmp_path)
    models.write_checkpoints(Shape(hidden=64, inner=96, heads=4, vocab_size=320))
    config = json.loads((models.plain / "config.json").read_text())
    sources = [source for _, parts in gguf_file._tensors(config) for source in parts]
    stored: set[str] = set()
    for file in models.plain.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            stored |= set(opened.keys())
    assert sorted(sources) == sorted(stored)
    assert (
        models.coded_bytes("int4_dense_int4")
        < models.coded_bytes("int4")
        < models.coded_bytes("int8")
        < models.coded_bytes("bf16")
    )
    assert models.gguf_bytes("BF16") == models.kernel_bytes("bf16") == models.coded_bytes("bf16")


def test_a_failure_is_of_one_system_or_of_a_kind(capsys: pytest.CaptureFixture[str]) -> None:
    run = peers._Run(Environment(Path("none")), Models(Path("none")), threads=1, jobs=1, rounds=1)
    run._fail("fiddler_int4", "it ended")
    assert set(run.failures) == {"fiddler_int4"}
    run._fail("ktransformers", "no wheel")
    assert set(run.failures) == {"fiddler_int4", *(f"ktransformers_{each}" for each in ("bf16", "int8", "int4"))}
    assert "ktransformers_int8: no wheel" in capsys.readouterr().err


def test_every_system_of_ours_serves_a_checkpoint_that_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systems, "Ours", lambda model: model)
    run = peers._Run(Environment(Path("none")), Models(tmp_path), threads=1, jobs=1, rounds=1)
    names = {name for session in peers.SESSIONS for name in session if name.startswith("fiddler")}
    served: dict[str, Any] = {name: run._make(name) for name in names}
    assert served == {name: tmp_path / name.removeprefix("fiddler_") for name in names}
    assert {path.name for path in served.values()} == {"bf16", *RECIPES}


def test_rows_of_queries_are_in_pairs_for_llama_cpp() -> None:
    rows = torch.arange(8.0)[:, None].expand(8, 2)
    assert gguf_file._permuted(rows, "blk.0.attn_q.weight", 2, 1)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert gguf_file._permuted(rows, "blk.0.attn_v.weight", 2, 1) is rows


class _Fake:
    """Decodes at 10 tokens per second, or fails in the second round."""

    def __init__(self, fails: bool) -> None:
        self._left = 4 if fails else 1000

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def generate(self, prompt: list[int], num_tokens: int) -> Generated:
        self._left -= 1
        if not self._left:
            raise PeerError("it crashed")
        return Generated(0.5, 0.1, [1] * num_tokens)

    def memory_bytes(self) -> int:
        return 10**9


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What a session of three writes, of which one crashes on the way and one cannot be started."""

    def make(self: Any, name: str) -> _Fake:
        if name == "ktransformers_int4":
            raise PeerError("no such kernel")
        return _Fake(fails=name == "llama_cpp_Q4_0")

    monkeypatch.setattr(peers._Run, "_make", make)
    monkeypatch.setattr(peers._Run, "_weight_bytes", lambda self, name: 10**9)
    monkeypatch.setattr(peers, "_PAUSE_SECONDS", 0)
    monkeypatch.setattr(read_bandwidth, "host_bytes_per_second", lambda: 2e10)
    measured = peers._Run(Environment(Path("none")), Models(Path("none")), threads=1, jobs=1, rounds=2)
    judge = Judge(Report(None), peers.TARGETS)
    measured.session(peers.SESSIONS[-1], judge)
    measured.summarise(judge)
    written = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return {line.get("system", line["name"]): line for line in written}


def test_a_system_that_fails_is_left_out_and_the_others_are_compared(lines: dict[str, Any]) -> None:
    assert lines["llama_cpp_Q4_0"]["reason"] == "it crashed"
    assert lines["ktransformers_int4"]["reason"] == "no such kernel"
    over = lines["peers.fiddler_int4.decode.over.llama_cpp_Q4_K"]
    assert (over["value"], over["at_least"]) == (1.0, 1.3)
    assert "peers.fiddler_int4.decode.over.llama_cpp_Q4_0" not in lines
    assert "peers.fiddler_int4.decode.over.fiddler_int4_dense_int4" not in lines
    assert lines["peers.fiddler_int4_dense_int4.decode.over.fiddler_int4"]["value"] == 1.0
    assert lines["peers.fiddler_int4_dense_int4.decode.over.llama_cpp_Q4_K"]["at_least"] == 1.3
    assert lines["peers.fiddler_int4.decode"]["value"] == 10.0
    assert lines["peers.fiddler_int4.prefill_512"]["value"] == 1024
    assert lines["peers.fiddler_int4.bandwidth_share"]["value"] == 0.5
    assert lines["peers.llama_cpp_Q4_K.same_tokens.as.fiddler_int4"]["value"] == 1.0
