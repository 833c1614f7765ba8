"""One expert of Mixtral's size (4096 x 14336, bf16): few rows compared with reading, many with PyTorch's products."""

import statistics

import torch

from benchmarks.harness.rounds import Samples, Work, interleave, milliseconds, ratios
from benchmarks.harness.targets import Judge
from benchmarks.kernel.peak import Peak
from benchmarks.kernel.weights import MIXTRAL, layer, layer_call, read_loop, same_expert, torch_expert, widened
from cpu_expert_service.calibration import STREAMS
from cpu_expert_service.kernel import Kernel
from cpu_expert_service.native_kernel import NativeKernel
from cpu_expert_service.ram import copy_layers
from fiddler.expert_math import ExpertWeights
from fiddler.kernels.native import Pool, available_tiers

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_WIDENED_FROM_ROWS = 64
_WIDENED_EXPERTS = 2  # 1.4 GB: they are twice as large as in bfloat16


def measure(out: Judge, kernel: Kernel, *, pool: Pool, peak: Peak, weights: torch.Tensor, few: int, many: int) -> None:
    """Measures all numbers of rows.

    Args:
        out: Takes the results.
        kernel: The kernel to measure.
        pool: The kernel's threads.
        peak: Measures the peak speed of the vector units.
        weights: The mapped file.
        few: Rounds of calls that take milliseconds.
        many: Rounds of calls that take longer.
    """
    experts = layer(weights, MIXTRAL)
    compute = kernel.prepare(experts)
    streams = _measure_one_row(out, pool, weights=weights, rounds=few)
    wide: list[ExpertWeights] = []
    peaks = peak.measure()
    for rows in ROWS:
        hidden = torch.randn(rows, MIXTRAL.hidden, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
        cases: dict[str, Work] = {
            "torch": torch_expert(list(experts.experts), hidden),
            "ours": layer_call(compute, hidden, same_expert(rows, MIXTRAL.num_experts)),
            "read": read_loop(pool, weights, num_bytes=MIXTRAL.expert_bytes, streams=streams),
        }
        if rows >= _WIDENED_FROM_ROWS:
            wide = wide or widened(experts, _WIDENED_EXPERTS)
            cases["fp32_gemm"] = torch_expert(wide, hidden.float())
            speeds = peak.measure()
            # the best so far, since the machine may have been slow before
            peaks = {name: max(speed, peaks.get(name, 0)) for name, speed in speeds.items()}
        samples = interleave(cases, many if rows >= _WIDENED_FROM_ROWS else few)
        _report(out, rows, samples, peaks)


def _measure_one_row(out: Judge, pool: Pool, *, weights: torch.Tensor, rounds: int) -> int:
    """Measures every tier and the read loops; returns the number of streams of the fastest loop."""
    experts = layer(weights, MIXTRAL)
    hidden = torch.randn(1, MIXTRAL.hidden, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    ids = same_expert(1, MIXTRAL.num_experts)
    tiers = [tier for tier in available_tiers() if tier != "scalar"]
    cases: dict[str, Work] = {
        tier: layer_call(NativeKernel(pool, tier).prepare(experts), hidden, ids) for tier in tiers
    }
    for streams in STREAMS:
        cases[f"streams{streams}"] = read_loop(pool, weights, num_bytes=MIXTRAL.expert_bytes, streams=streams)
    copies = copy_layers([experts], pool, lambda done, total: None)
    cases["ram"] = layer_call(NativeKernel(pool, tiers[-1]).prepare(copies[0]), hidden, ids)
    samples = interleave(cases, rounds)
    reads = {streams: samples[f"streams{streams}"] for streams in STREAMS}
    for streams, seconds in reads.items():
        out.samples(f"kernel.read.streams{streams}", [MIXTRAL.expert_bytes / value / 1e9 for value in seconds], "GB/s")
    fastest = min(STREAMS, key=lambda streams: statistics.median(reads[streams]))
    for tier in tiers:
        values = [MIXTRAL.expert_bytes / value / 1e9 for value in samples[tier]]
        out.samples(f"kernel.bf16.m1.{tier}.read_bandwidth", values, "GB/s")
    fractions = ratios(reads[fastest], samples[tiers[-1]])
    out.samples(
        "kernel.bf16.m1.fraction_of_read_bandwidth", fractions, "ratio", tier=tiers[-1], yardstick_streams=fastest
    )
    for tier in tiers:
        if "avx512" in tiers and tier != "avx512":
            out.samples(f"kernel.bf16.m1.{tier}_over_avx512", ratios(samples[tier], samples["avx512"]), "ratio")
    out.samples("kernel.bf16.m1.ram_over_mmap", ratios(samples["ram"], samples[tiers[-1]]), "ratio")
    return fastest


def _report(out: Judge, rows: int, samples: Samples, peaks: dict[str, float]) -> None:
    name = f"kernel.bf16.m{rows}"
    operations = 2 * rows * MIXTRAL.expert_elements
    for case in ("ours", "torch", "fp32_gemm"):
        if case in samples:
            out.samples(f"{name}.{case}", milliseconds(samples[case]), "ms")
    out.samples(f"{name}.ours.speed", [operations / value / 1e9 for value in samples["ours"]], "GFLOP/s")
    out.samples(f"{name}.speedup_over_torch", ratios(samples["torch"], samples["ours"]), "ratio")
    if rows > 1:
        out.samples(f"{name}.fraction_of_read_bandwidth", ratios(samples["read"], samples["ours"]), "ratio")
    out.samples(f"{name}.torch_over_read", ratios(samples["torch"], samples["read"]), "ratio")
    if "fp32_gemm" not in samples:
        return
    out.samples(f"{name}.speedup_over_fp32_gemm", ratios(samples["fp32_gemm"], samples["ours"]), "ratio")
    for loop, speed in peaks.items():
        out.samples(f"kernel.peak.{loop}.until_m{rows}", [speed / 1e9], "GFLOP/s")
        label = loop.partition("_")[0]
        fractions = [operations / value / speed for value in samples["ours"]]
        out.samples(f"{name}.fraction_of_{label}_peak", fractions, "ratio", loop=loop)
