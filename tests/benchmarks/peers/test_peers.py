"""The comparison's own arithmetic, workers and files; the other engines are not installed for tests."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, get_args
from unittest.mock import Mock

import pytest
import torch
from safetensors import safe_open

from benchmarks.harness.results import Report
from benchmarks.harness.targets import Judge
from benchmarks.peers import __main__ as peers
from benchmarks.peers import gguf_file, systems
from benchmarks.peers.architectures import ARCHITECTURES, is_plain
from benchmarks.peers.environment import Environment, PeerError
from benchmarks.peers.models import RECIPES, Models
from benchmarks.peers.shapes import MODELS, Mixtral, Name, Qwen3, Shape
from benchmarks.peers.systems import ROOT, Generated, Worker
from benchmarks.peers.table import Measured, table
from gpu_service.startup import read_bandwidth

MIXTRAL = Mixtral(hidden=64, inner=96, heads=4, vocab_size=320)
QWEN3 = Qwen3(hidden=64, inner=96, heads=8, experts=16, vocab_size=320)
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


@pytest.mark.parametrize("shape", [MIXTRAL, QWEN3])
def test_every_tensor_of_a_checkpoint_has_its_place_in_gguf(shape: Shape, tmp_path: Path) -> None:
    models = Models(tmp_path)
    models.write_checkpoints(shape)
    config = json.loads((models.plain / "config.json").read_text())
    sources = [source for _, parts in ARCHITECTURES[config["model_type"]].tensors(config) for source in parts]
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
    assert models.kernel_bytes("bf16") == models.coded_bytes("bf16")
    routers = sum(math.prod(sizes) for part in shape.parts() for name, sizes in part.items() if ".gate.w" in name)
    assert models.gguf_bytes("BF16") == models.kernel_bytes("bf16") + 2 * routers  # in float32


def test_a_token_reads_the_experts_it_takes(tmp_path: Path) -> None:
    models = Models(tmp_path)
    QWEN3.write(models.plain)
    num_experts, expert, dense, embeddings = 4 * 16, 3 * 64 * 96, 0, 320 * 64
    for part in QWEN3.parts():
        dense += sum(math.prod(sizes) for name, sizes in part.items() if ".experts." not in name)
    assert models.coded_bytes("bf16") == 2 * (dense - embeddings + num_experts * expert * 8 // 16)


def test_the_layers_of_qwen3_have_the_published_names_and_sizes() -> None:
    parts = MODELS["qwen3_30b_a3b"].full.parts()
    assert len(parts) == 1 + 4
    assert sum(".experts." in name for part in parts for name in part) == 4 * 128 * 3
    assert parts[4]["model.layers.3.mlp.experts.127.down_proj.weight"] == (2048, 768)
    layer = {name.removeprefix("model.layers.0."): sizes for name, sizes in parts[1].items()}
    assert {name: sizes for name, sizes in layer.items() if ".experts." not in name or ".experts.0." in name} == {
        "input_layernorm.weight": (2048,),
        "post_attention_layernorm.weight": (2048,),
        "self_attn.q_proj.weight": (4096, 2048),
        "self_attn.k_proj.weight": (512, 2048),
        "self_attn.v_proj.weight": (512, 2048),
        "self_attn.o_proj.weight": (2048, 4096),
        "self_attn.q_norm.weight": (128,),
        "self_attn.k_norm.weight": (128,),
        "mlp.gate.weight": (128, 2048),
        "mlp.experts.0.gate_proj.weight": (768, 2048),
        "mlp.experts.0.down_proj.weight": (2048, 768),
        "mlp.experts.0.up_proj.weight": (768, 2048),
    }


def test_gguf_describes_heads_and_experts(tmp_path: Path) -> None:
    QWEN3.write(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["norm_topk_prob"], config["mlp_only_layers"], config["tie_word_embeddings"]) == (True, [], False)
    told = _described(config)
    assert (told["head_count"], told["head_count_kv"]) == (8, 1)
    assert told["key_length"] == told["value_length"] == told["rope_dimension_count"] == 128
    assert (told["expert_count"], told["expert_used_count"]) == (16, 8)
    assert (told["expert_feed_forward_length"], told["feed_forward_length"]) == (96, 8 * 96)
    assert (told["rope_freq_base"], told["layer_norm_rms_eps"]) == (1e6, 1e-6)


def test_gguf_has_no_second_width_for_experts_that_are_the_whole_layer(tmp_path: Path) -> None:
    MIXTRAL.write(tmp_path)
    told = _described(json.loads((tmp_path / "config.json").read_text()))
    assert (told["key_length"], told["feed_forward_length"]) == (16, 96)
    assert "expert_feed_forward_length" not in told


def _described(config: dict[str, Any]) -> dict[str, Any]:
    writer = Mock()
    gguf_file._describe(config, writer)
    return {call[0].removeprefix("add_"): call.args[0] for call in writer.method_calls}


def test_norms_and_routers_stay_in_float32() -> None:
    config = {"num_hidden_layers": 1, "num_local_experts": 2}
    names = [name for name, _ in ARCHITECTURES["qwen3_moe"].tensors(config) if is_plain(name)]
    layer = ("attn_norm", "ffn_norm", "attn_q_norm", "attn_k_norm", "ffn_gate_inp")
    assert names == ["output_norm.weight", *(f"blk.0.{name}.weight" for name in layer)]


def test_models_share_neither_files_nor_names_of_results() -> None:
    assert set(MODELS) == set(get_args(Name))
    assert len({model.directory for model in MODELS.values()}) == len(MODELS)
    assert {model.results for model in MODELS.values()} == {"peers", "peers.qwen3_30b_a3b"}


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
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    assert gguf_file._permuted(rows, "blk.0.attn_q.weight", heads)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert gguf_file._permuted(rows, "blk.0.attn_k.weight", heads)[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert gguf_file._permuted(rows, "blk.0.attn_v.weight", heads) is rows
    assert [kind for kind, each in ARCHITECTURES.items() if each.rotates_adjacent] == ["mixtral"]


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


Lines = Callable[..., dict[str, Any]]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Lines:
    """Writes what a session of five does, of which one crashes on the way and one cannot be started."""

    def make(self: Any, name: str) -> _Fake:
        if name == "ktransformers_int4":
            raise PeerError("no such kernel")
        return _Fake(fails=name == "llama_cpp_Q4_0")

    monkeypatch.setattr(peers._Run, "_make", make)
    monkeypatch.setattr(peers._Run, "_weight_bytes", lambda self, name: 10**9)
    monkeypatch.setattr(peers, "_PAUSE_SECONDS", 0)
    monkeypatch.setattr(read_bandwidth, "host_bytes_per_second", lambda: 2e10)

    def measure(**options: str) -> dict[str, Any]:
        run = peers._Run(Environment(Path("none")), Models(Path("none")), threads=1, jobs=1, rounds=2, **options)
        judge = Judge(Report(None), peers.TARGETS)
        run.session(peers.SESSIONS[-1], judge)
        run.summarise(judge)
        written = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        return {line.get("system", line["name"]): line for line in written}

    return measure


def test_the_results_of_another_model_have_names_of_their_own(lines: Lines) -> None:
    of_both = [lines(results=model.results) for model in MODELS.values()]
    names = [{line["name"] for line in each.values()} - {"machine"} for each in of_both]
    assert names[1] == {name.replace("peers.", "peers.qwen3_30b_a3b.", 1) for name in names[0]}
    over = of_both[1]["peers.qwen3_30b_a3b.fiddler_int4.decode.over.llama_cpp_Q4_K"]
    assert (over["value"], "at_least" in over) == (1.0, False)  # targets are Mixtral's


def test_a_system_that_fails_is_left_out_and_the_others_are_compared(lines: Lines) -> None:
    written = lines()
    assert written["llama_cpp_Q4_0"]["reason"] == "it crashed"
    assert written["ktransformers_int4"]["reason"] == "no such kernel"
    over = written["peers.fiddler_int4.decode.over.llama_cpp_Q4_K"]
    assert (over["value"], over["at_least"]) == (1.0, 1.3)
    assert "peers.fiddler_int4.decode.over.llama_cpp_Q4_0" not in written
    assert "peers.fiddler_int4.decode.over.fiddler_int4_dense_int4" not in written
    assert written["peers.fiddler_int4_dense_int4.decode.over.fiddler_int4"]["value"] == 1.0
    assert written["peers.fiddler_int4_dense_int4.decode.over.llama_cpp_Q4_K"]["at_least"] == 1.3
    assert written["peers.fiddler_int4.decode"]["value"] == 10.0
    assert written["peers.fiddler_int4.prefill_512"]["value"] == 1024
    assert written["peers.fiddler_int4.bandwidth_share"]["value"] == 0.5
    assert written["peers.llama_cpp_Q4_K.same_tokens.as.fiddler_int4"]["value"] == 1.0
