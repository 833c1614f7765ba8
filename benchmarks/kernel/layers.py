"""Whole layers: many small experts, tiny ones, and one large expert against rows and threads."""

import statistics
import time

import torch

from benchmarks.harness.rounds import Work, interleave, milliseconds, ratios
from benchmarks.harness.targets import Judge
from benchmarks.kernel.weights import (
    MIXTRAL,
    QWEN3_30B_A3B,
    QWEN3_TOP_K,
    TINY,
    layer,
    layer_call,
    read_loop,
    same_expert,
    torch_expert,
)
from cpu_expert_service.calibration import STREAMS
from cpu_expert_service.kernel import Kernel, PyTorchKernel
from cpu_expert_service.native_kernel import NativeKernel
from fiddler.kernels.native import Pool

SCALING_ROWS = tuple(2**power for power in range(11))
_QWEN = "kernel.qwen3_30b_a3b"
_QWEN_ROWS = (1, 64)
_MESSAGES = 24
_CALLS = 200
_ASLEEP_SECONDS = 0.001


def measure_qwen(out: Judge, kernel: Kernel, *, pool: Pool, weights: torch.Tensor, rounds: int) -> None:
    """Compares one token with reading, and 64 with PyTorch."""
    experts = layer(weights, QWEN3_30B_A3B)
    functions = {"ours": kernel.prepare(experts), "torch": PyTorchKernel(pool.num_threads).prepare(experts)}
    generator = torch.Generator().manual_seed(2)
    for rows in _QWEN_ROWS:
        hidden = torch.randn(rows, QWEN3_30B_A3B.hidden, generator=generator).to(torch.bfloat16)
        ids = [_choose(rows, generator) for _ in range(_MESSAGES)]
        cases: dict[str, Work] = {name: layer_call(compute, hidden, ids) for name, compute in functions.items()}
        if rows == 1:
            num_bytes = QWEN3_TOP_K * QWEN3_30B_A3B.expert_bytes
            cases |= {
                f"streams{streams}": read_loop(pool, weights, num_bytes=num_bytes, streams=streams)
                for streams in STREAMS
            }
        samples = interleave(cases, rounds)
        for name in functions:
            out.samples(f"{_QWEN}.m{rows}.{name}", milliseconds(samples[name]), "ms")
        out.samples(f"{_QWEN}.m{rows}.speedup_over_torch", ratios(samples["torch"], samples["ours"]), "ratio")
        if rows == 1:
            fastest = min(STREAMS, key=lambda streams: statistics.median(samples[f"streams{streams}"]))
            reads = samples[f"streams{fastest}"]
            out.samples(f"{_QWEN}.m1.read", [num_bytes / value / 1e9 for value in reads], "GB/s", streams=fastest)
            out.samples(f"{_QWEN}.m1.fraction_of_read_bandwidth", ratios(reads, samples["ours"]), "ratio")


def _choose(rows: int, generator: torch.Generator) -> torch.Tensor:
    """[rows, k] experts, distinct in each row."""
    scores = torch.rand(rows, QWEN3_30B_A3B.num_experts, generator=generator)
    return scores.topk(QWEN3_TOP_K).indices.to(torch.int32)


def measure_fixed_cost(out: Judge, kernel: Kernel, *, weights: torch.Tensor, rounds: int) -> None:
    """Measures a call that computes next to nothing, with threads awake and with threads asleep."""
    compute = kernel.prepare(layer(weights, TINY))
    call = layer_call(compute, torch.zeros(1, TINY.hidden, dtype=torch.bfloat16), [torch.tensor([[1, 5]]).int()])
    for _ in range(_CALLS):
        call()
    awake, asleep = [], []
    for _ in range(rounds):
        awake.append(statistics.median(_timed(call) for _ in range(_CALLS)))
        for _ in range(3):
            time.sleep(_ASLEEP_SECONDS)
            asleep.append(_timed(call))
    out.samples("kernel.layer.fixed_cost", [value * 1e6 for value in awake], "us", calls=_CALLS)
    out.samples("kernel.layer.fixed_cost_asleep", [value * 1e6 for value in asleep], "us")


def _timed(call: Work) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def measure_scaling(
    out: Judge, pools: list[Pool], tier: str, *, weights: torch.Tensor, rounds: int, most_rows: int
) -> None:
    """Measures one of Mixtral's experts by number of rows, with each pool's number of threads."""
    experts = layer(weights, MIXTRAL)
    functions = {f"threads{pool.num_threads}": NativeKernel(pool, tier).prepare(experts) for pool in pools}
    for rows in SCALING_ROWS:
        if rows > most_rows:
            break
        hidden = torch.randn(rows, MIXTRAL.hidden, generator=torch.Generator().manual_seed(3)).to(torch.bfloat16)
        ids = same_expert(rows, MIXTRAL.num_experts)
        cases: dict[str, Work] = {name: layer_call(compute, hidden, ids) for name, compute in functions.items()}
        cases["torch"] = torch_expert(list(experts.experts), hidden)
        samples = interleave(cases, rounds)
        for name, seconds in samples.items():
            out.samples(f"kernel.scaling.{name}.m{rows}", milliseconds(seconds), "ms")
