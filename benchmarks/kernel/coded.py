"""One expert of Mixtral's size in 8 and 4 bits, compared with the same expert in bf16 and with reading its bytes."""

import statistics
from dataclasses import replace
from typing import Final

import torch

from benchmarks.harness.rounds import Work, interleave, milliseconds, ratios
from benchmarks.harness.targets import Judge, Target
from benchmarks.kernel.weights import (
    MIXTRAL,
    QWEN3_30B_A3B,
    QWEN3_TOP_K,
    Shape,
    layer,
    layer_call,
    read_loop,
    same_expert,
)
from cpu_expert_service.calibration import STREAMS
from cpu_expert_service.kernel import Kernel
from fiddler.coding import Code, CodedTensor, Coding, ScaleKind
from fiddler.expert_math import ExpertWeights, LayerWeights
from fiddler.kernels.native import Pool

ROWS: Final = (1, 4, 16, 64, 256)
FORMATS: Final = {
    "int8": Coding(Code.INT8, ScaleKind.FLOAT32, 0),
    "fp8": Coding(Code.E4M3, ScaleKind.FLOAT32, 128, 128),
    "int4": Coding(Code.UINT4, ScaleKind.BFLOAT16, 32),
    "mxfp4": Coding(Code.E2M1, ScaleKind.E8M0, 32),
}
"""By name; groups of 0 inputs are whole rows."""
_EIGHT_BITS: Final = {1: 1.8, 4: 1.7, 16: 1.1, 64: 0.9}
_FOUR_BITS: Final = {1: 3.2, 4: 2.5, 16: 1.1, 64: 0.9}
TARGETS: Final = {
    **{
        f"kernel.{name}.m{rows}.speedup_over_bf16": Target(least)
        for name, coding in FORMATS.items()
        for rows, least in (_EIGHT_BITS if coding.code.bits == 8 else _FOUR_BITS).items()
    },
    **{
        f"kernel.{name}.m1.fraction_of_read_bandwidth": Target(0.90 if coding.code.bits == 8 else 0.80)
        for name, coding in FORMATS.items()
    },
}


def measure(out: Judge, kernel: Kernel, *, pool: Pool, weights: torch.Tensor, rounds: int) -> None:
    """Measures all formats, each next to bf16 in the same rounds.

    Args:
        out: Takes the results.
        kernel: The kernel to measure.
        pool: The kernel's threads.
        weights: The mapped file, whose bytes are taken for codes, too.
        rounds: Rounds of calls.
    """
    for rows in ROWS:
        hidden = torch.randn(rows, MIXTRAL.hidden, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
        ids = same_expert(rows, MIXTRAL.num_experts)
        cases = {"bf16": layer_call(kernel.prepare(layer(weights, MIXTRAL)), hidden, ids)}
        for name, coding in FORMATS.items():
            cases[name] = layer_call(kernel.prepare(_coded_layer(weights, MIXTRAL, coding)), hidden, ids)
        samples = interleave(cases, rounds)
        for name in FORMATS:
            out.samples(f"kernel.{name}.m{rows}.ours", milliseconds(samples[name]), "ms")
            out.samples(f"kernel.{name}.m{rows}.speedup_over_bf16", ratios(samples["bf16"], samples[name]), "ratio")
    for name, coding in FORMATS.items():
        _measure_reading(out, name, kernel, coding, pool=pool, weights=weights, rounds=rounds)
    _measure_small(out, kernel, weights=weights, rounds=rounds)


def _measure_reading(
    out: Judge, name: str, kernel: Kernel, coding: Coding, *, pool: Pool, weights: torch.Tensor, rounds: int
) -> None:
    """One row, compared with loops that read as many bytes once."""
    coded = _coded_layer(weights, MIXTRAL, coding)
    num_bytes = coded.experts[0].nbytes
    hidden = torch.randn(1, MIXTRAL.hidden, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    cases: dict[str, Work] = {
        "ours": layer_call(kernel.prepare(coded), hidden, same_expert(1, MIXTRAL.num_experts)),
        **{f"streams{streams}": read_loop(pool, weights, num_bytes=num_bytes, streams=streams) for streams in STREAMS},
    }
    samples = interleave(cases, rounds)
    fastest = min(STREAMS, key=lambda streams: statistics.median(samples[f"streams{streams}"]))
    fractions = ratios(samples[f"streams{fastest}"], samples["ours"])
    out.samples(f"kernel.{name}.m1.fraction_of_read_bandwidth", fractions, "ratio", yardstick_streams=fastest)


def _measure_small(out: Judge, kernel: Kernel, *, weights: torch.Tensor, rounds: int) -> None:
    """A token in a layer of 128 small experts."""
    hidden = torch.randn(1, QWEN3_30B_A3B.hidden, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    ids = [
        torch.arange(first, first + QWEN3_TOP_K, dtype=torch.int32)[None]
        for first in range(0, QWEN3_30B_A3B.num_experts, QWEN3_TOP_K)
    ]
    cases = {"bf16": layer_call(kernel.prepare(layer(weights, QWEN3_30B_A3B)), hidden, ids)}
    for name, coding in FORMATS.items():
        cases[name] = layer_call(kernel.prepare(_coded_layer(weights, QWEN3_30B_A3B, coding)), hidden, ids)
    samples = interleave(cases, rounds)
    for name in FORMATS:
        small = ratios(samples["bf16"], samples[name])
        out.samples(f"kernel.{name}.qwen3_30b_a3b.m1.speedup_over_bf16", small, "ratio")


def _coded_layer(weights: torch.Tensor, shape: Shape, coding: Coding) -> LayerWeights:
    """Experts whose codes are the mapped file's bytes, as far apart as experts in bf16 are."""
    codes = weights.view(torch.uint8)
    experts = []
    for number in range(shape.num_experts):
        begin = number * shape.expert_bytes
        matrices = []
        for outputs, inputs in [(shape.intermediate, shape.hidden)] * 2 + [(shape.hidden, shape.intermediate)]:
            own = replace(coding, group_inputs=coding.group_inputs or inputs)
            size = outputs * own.row_bytes(inputs)
            groups = (-(-outputs // own.group_outputs), own.num_groups(inputs))
            plane = codes[begin : begin + size].view(outputs, own.row_bytes(inputs))
            matrices.append(CodedTensor(own, (outputs, inputs), plane, _scales(own.scale, groups)))
            begin += size
        gate, up, down = matrices
        experts.append(ExpertWeights(gate, up, down))
    return LayerWeights(tuple(experts), "silu")


def _scales(kind: ScaleKind, shape: tuple[int, int]) -> torch.Tensor:
    if kind is ScaleKind.E8M0:
        return torch.full(shape, 118, dtype=torch.uint8)
    return torch.full(shape, 2.0**-9, dtype=kind.dtype)
