"""`python -m benchmarks.attention`: attention of a decode step on the CPU, by the native kernels and by PyTorch.

attention.read                     GB/s of the fastest of several loops that only read keys and values
attention.SHAPE.LENGTH.rN.native   milliseconds of one layer, N sequences of so many positions; SHAPE is mixtral (32
                                   heads that share 8 of keys and values) or qwen3_30b_a3b (32 that share 4), of 128
attention.SHAPE.LENGTH.rN.torch    the same by transformers' function and PyTorch's attention, with a mask of the length
attention.SHAPE.LENGTH.rN.speedup  PyTorch's time over the native kernels', round by round
attention.SHAPE.LENGTH.rN.share    bytes of keys and values over the native time, over attention.read

Keys and values are bfloat16. Every round goes through all cases in turn, and calls use several caches in turn, so that
long ones are read from memory.
"""

from collections.abc import Callable
from itertools import cycle
from typing import Final

import torch
import typer
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from benchmarks.harness.results import Append, Out, Quick, Report, report
from benchmarks.harness.rounds import interleave, ratios
from fiddler.kernels.attention import AttentionKernel
from fiddler.kernels.linear import LinearKernel, shared_kernel
from tools.command_line import run

_HEAD: Final = 128
_SHAPES: Final = {"mixtral": (32, 8), "qwen3_30b_a3b": (32, 4)}
"""Heads of queries, and of keys and values."""
_LENGTHS: Final = (64, 512, 4096, 32768)
_ROWS: Final = (1, 8)
_STREAMS: Final = (1, 2, 4, 8, 16)
_CACHE_BYTES: Final = 2**29
"""Of all caches that calls use in turn."""

Layer = tuple[torch.Tensor, torch.Tensor]
"""Keys and values [rows, heads, length, dim]."""


class _Attention(nn.Module):
    """What transformers' function asks of a module."""

    is_causal = True

    def __init__(self, num_key_value_groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = num_key_value_groups


def main(out: Out = None, append: Append = False, quick: Quick = False) -> None:
    """Runs the benchmark."""
    kernel = shared_kernel(torch.get_num_threads())
    if kernel is None:
        raise typer.BadParameter("there are no native kernels for this CPU")
    rounds, lengths, rows = (3, (64, 300), (1, 2)) if quick else (21, _LENGTHS, _ROWS)
    memory = torch.randn((2**22 if quick else _CACHE_BYTES) // 2, dtype=torch.float32).bfloat16()
    with report(out, append) as results, torch.inference_mode():
        read = _measure_read(results, kernel, memory, rounds)
        for shape in _SHAPES:
            for length in lengths:
                for number in rows:
                    _measure(results, shape, memory, kernel, length=length, rows=number, read=read, rounds=rounds)


def _measure_read(results: Report, kernel: LinearKernel, memory: torch.Tensor, rounds: int) -> float:
    """Reports and returns bytes per second."""

    def read(streams: int) -> Callable[[], None]:
        return lambda: kernel.pool.read(memory.data_ptr(), memory.nbytes, streams)

    samples = interleave({str(streams): read(streams) for streams in _STREAMS}, rounds)
    fastest = min(samples.values(), key=lambda seconds: sorted(seconds)[len(seconds) // 2])
    results.samples("attention.read", [memory.nbytes / seconds / 1e9 for seconds in fastest], "GB/s")
    return memory.nbytes / sorted(fastest)[len(fastest) // 2]


def _measure(
    results: Report,
    shape: str,
    memory: torch.Tensor,
    kernel: LinearKernel,
    *,
    length: int,
    rows: int,
    read: float,
    rounds: int,
) -> None:
    heads, kv_heads = _SHAPES[shape]
    layers = _layers(memory, (rows, kv_heads, length, _HEAD))
    if not layers:
        return  # there is not so much memory for them
    queries = torch.randn(rows, heads, 1, _HEAD, generator=torch.Generator().manual_seed(1)).bfloat16()
    mask = torch.ones(rows, 1, 1, length, dtype=torch.bool)
    calls = min(20, max(1, 2**24 // layers[0][0].nbytes))
    attention, module = AttentionKernel(kernel), _Attention(heads // kv_heads)
    native, other = cycle(layers), cycle(layers)

    def by_kernel() -> None:
        for _ in range(calls):
            keys, values = next(native)
            attention.attend(queries[:, :, 0], keys, values, visible=mask[:, 0, 0])

    def by_torch() -> None:
        for _ in range(calls):
            keys, values = next(other)
            sdpa_attention_forward(module, queries, keys, values, mask)

    samples = interleave({"native": by_kernel, "torch": by_torch}, rounds)
    name = f"attention.{shape}.{length}.r{rows}"
    for case, seconds in samples.items():
        results.samples(f"{name}.{case}", [1e3 * each / calls for each in seconds], "ms")
    results.samples(f"{name}.speedup", ratios(samples["torch"], samples["native"]), "ratio")
    num_bytes = calls * 2 * layers[0][0].nbytes
    results.samples(f"{name}.share", [num_bytes / each / read for each in samples["native"]], "ratio")


def _layers(memory: torch.Tensor, shape: tuple[int, ...]) -> list[Layer]:
    """As many layers as there is memory for."""
    size = torch.Size(shape).numel()
    parts = [memory[begin : begin + size].view(shape) for begin in range(0, len(memory) - size + 1, size)]
    return list(zip(parts[::2], parts[1::2], strict=False))


if __name__ == "__main__":
    run(main, __doc__)
