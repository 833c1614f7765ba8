"""`python -m benchmarks.large_start`: starting on a checkpoint of 128 files and 60,000 tensors that hold no data.

The names and shapes are DeepSeek-V3's, in bfloat16, with 80 layers instead of 61 to make 60,000 tensors. The files are
sparse: 1.7 TB take megabytes of disk. Experts are therefore not read ahead.

large_start.checkpoint.open                 s to read all headers and to find every expert
large_start.checkpoint.fingerprint          s to compute the fingerprint that the services compare at the handshake
large_start.cpu_expert_service.serving      s from the start of the process until it serves
large_start.cpu_expert_service.memory       peak bytes of its own memory, without mapped files
large_start.gpu_service.dry_run             s that `python -m gpu_service --dry-run` takes: everything that a start does
                                            before it reads weights, including building the model without memory
large_start.gpu_service.memory              peak bytes of its own memory, without mapped files
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from benchmarks.harness.results import Append, Out, report
from benchmarks.harness.targets import Judge, Target
from fiddler import process
from tools.command_line import run

_NUM_FILES = 128
_NUM_LAYERS = 80
_POLL_SECONDS = 0.02
_SECONDS = Target(20, at_least=False)
_BYTES = Target(2**30, at_least=False)
TARGETS = {
    "large_start.cpu_expert_service.serving": _SECONDS,
    "large_start.cpu_expert_service.memory": _BYTES,
    "large_start.gpu_service.dry_run": _SECONDS,
    "large_start.gpu_service.memory": _BYTES,
}

Shapes = dict[str, tuple[int, ...]]


def main(
    out: Out = None,
    append: Append = False,
    runs: Annotated[int, typer.Option(help="How often each process is started.")] = 3,
) -> None:
    """Runs the benchmark."""
    process.prepare()
    with report(out, append) as results, tempfile.TemporaryDirectory(prefix="fiddler-") as name:
        directory = Path(name)
        num_tensors, num_bytes = write_sparse(directory)
        results.record("large_start.subject", files=_NUM_FILES, tensors=num_tensors, bytes=num_bytes)
        judge = Judge(results, TARGETS)
        _measure_checkpoint(judge, directory, runs)
        _measure_processes(judge, directory, runs)
        judge.summarise()


def _measure_checkpoint(out: Judge, directory: Path, runs: int) -> None:
    from fiddler.checkpoint import Checkpoint

    opened, fingerprinted = [], []
    for _ in range(runs):
        began = time.perf_counter()
        checkpoint = Checkpoint.open(directory)
        opened.append(time.perf_counter() - began)
        began = time.perf_counter()
        assert checkpoint.fingerprint
        fingerprinted.append(time.perf_counter() - began)
        checkpoint.close()
    out.samples("large_start.checkpoint.open", opened, "s")
    out.samples("large_start.checkpoint.fingerprint", fingerprinted, "s")


def _measure_processes(out: Judge, directory: Path, runs: int) -> None:
    cpu, gpu = [_serve(directory) for _ in range(runs)], [_dry_run(directory) for _ in range(runs)]
    for name, what, samples in (("cpu_expert_service", "serving", cpu), ("gpu_service", "dry_run", gpu)):
        out.samples(f"large_start.{name}.{what}", [seconds for seconds, _ in samples], "s")
        out.samples(f"large_start.{name}.memory", [num_bytes for _, num_bytes in samples], "bytes")


def _serve(directory: Path) -> tuple[float, int]:
    """Seconds until the CPU expert service serves, and the peak of its own memory in bytes."""
    from pair import Pair

    pair = Pair(directory, cpu_arguments=("--no-prefault",), log=subprocess.DEVNULL)
    most = 0
    try:
        began = time.monotonic()
        running = psutil.Process(pair.start("cpu_expert_service").pid)
        while not pair.is_serving(pair.experts):
            pair.check()
            most = max(most, _own_bytes(running))
            time.sleep(_POLL_SECONDS)
        seconds = time.monotonic() - began
        return seconds, max(most, _own_bytes(running))
    finally:
        pair.close()


def _dry_run(directory: Path) -> tuple[float, int]:
    command = [sys.executable, "-m", "gpu_service", "--model", str(directory), "--device", "cpu", "--dry-run"]
    began, most = time.monotonic(), 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        while running.poll() is None:
            most = max(most, _own_bytes(psutil.Process(running.pid)))
            time.sleep(_POLL_SECONDS)
        seconds = time.monotonic() - began
        assert running.stdout is not None
        printed = running.stdout.read()
    if running.returncode or f"{_NUM_LAYERS - 3} layers x 256" not in printed:
        raise RuntimeError(f"the dry run ended with status {running.returncode} and printed {printed!r}")
    return seconds, most


def _own_bytes(running: psutil.Process) -> int:
    """Resident bytes that belong to no file; 0 for a process that has ended."""
    try:
        memory = running.memory_info()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return 0
    return int(memory.rss - memory.shared)


def write_sparse(directory: Path) -> tuple[int, int]:
    """Writes the checkpoint; returns its numbers of tensors and of bytes."""
    from transformers import AutoConfig

    config = AutoConfig.for_model("deepseek_v3", num_hidden_layers=_NUM_LAYERS, dtype="bfloat16")
    config.save_pretrained(directory)
    shapes = list(_shapes(config))
    weight_map: dict[str, str] = {}
    num_bytes = 0
    for number in range(_NUM_FILES):
        part = shapes[len(shapes) * number // _NUM_FILES : len(shapes) * (number + 1) // _NUM_FILES]
        file = directory / f"model-{number + 1:05}-of-{_NUM_FILES:05}.safetensors"
        num_bytes += _write_file(file, part)
        weight_map |= {name: file.name for name, _ in part}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    _write_tokenizer(directory)
    return len(shapes), num_bytes


def _write_file(file: Path, shapes: list[tuple[str, tuple[int, ...]]]) -> int:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in shapes:
        end = position + 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [position, end]}
        position = end
    encoded = json.dumps(header).encode()
    with file.open("wb") as output:
        output.write(len(encoded).to_bytes(8, "little") + encoded)
        output.truncate(8 + len(encoded) + position)
    return position


def _shapes(config: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors of a DeepSeek-V3."""
    hidden = config.hidden_size
    yield "model.embed_tokens.weight", (config.vocab_size, hidden)
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        yield from _attention(f"{prefix}.self_attn", config)
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        if layer < config.first_k_dense_replace:
            yield from _mlp(f"{prefix}.mlp", hidden, config.intermediate_size)
            continue
        yield f"{prefix}.mlp.gate.weight", (config.n_routed_experts, hidden)
        yield f"{prefix}.mlp.gate.e_score_correction_bias", (config.n_routed_experts,)
        yield from _mlp(f"{prefix}.mlp.shared_experts", hidden, config.moe_intermediate_size)
        for expert in range(config.n_routed_experts):
            yield from _mlp(f"{prefix}.mlp.experts.{expert}", hidden, config.moe_intermediate_size)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (config.vocab_size, hidden)


def _attention(prefix: str, config: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, heads = config.hidden_size, config.num_attention_heads
    queries, latent, rope = config.q_lora_rank, config.kv_lora_rank, config.qk_rope_head_dim
    yield f"{prefix}.q_a_proj.weight", (queries, hidden)
    yield f"{prefix}.q_a_layernorm.weight", (queries,)
    yield f"{prefix}.q_b_proj.weight", (heads * (config.qk_nope_head_dim + rope), queries)
    yield f"{prefix}.kv_a_proj_with_mqa.weight", (latent + rope, hidden)
    yield f"{prefix}.kv_a_layernorm.weight", (latent,)
    yield f"{prefix}.kv_b_proj.weight", (heads * (config.qk_nope_head_dim + config.v_head_dim), latent)
    yield f"{prefix}.o_proj.weight", (hidden, heads * config.v_head_dim)


def _mlp(prefix: str, hidden: int, inner: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{prefix}.gate_proj.weight", (inner, hidden)
    yield f"{prefix}.up_proj.weight", (inner, hidden)
    yield f"{prefix}.down_proj.weight", (hidden, inner)


def _write_tokenizer(directory: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))  # type: ignore[no-untyped-call]
    tokenizer.save_pretrained(directory)


if __name__ == "__main__":
    run(main, __doc__)
