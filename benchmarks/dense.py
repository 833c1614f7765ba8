"""`python -m benchmarks.dense`: linear layers outside the experts, by the native kernels and by PyTorch.

dense.read                           GB/s of the fastest of several loops that only read the weights
dense.SHAPE.FORMAT.mN.native         GB/s of the weights' bytes, N rows; SHAPE is attention (the four projections of one
                                     of Mixtral's layers) or head (a vocabulary of 32,000); FORMAT is bf16, int8
                                     or int4
dense.SHAPE.FORMAT.mN.native_share   the same over dense.read
dense.SHAPE.bf16.mN.torch, .torch_share  PyTorch's product of matrix and vector for one row, of matrices for more
dense.SHAPE.bf16.mN.speedup          PyTorch's time over the native kernels', round by round
dense.SHAPE.FORMAT.mN.speedup_over_bf16  the time of the faster of the two for bf16 over that of int8 or int4

Every round goes through all cases in turn, and calls use the matrices of all layers in turn, so that none is read from
a cache. int8 has a scale for each output, int4 one for 32 inputs of an output.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Final

import torch
import typer
from torch.nn import functional

from benchmarks.harness.results import Append, Out, Quick, Report, report
from benchmarks.harness.rounds import Samples, interleave, ratios
from fiddler.convert.quantize import coded_bytes, quantize
from fiddler.convert.recipe import BITS, CodedFormat
from fiddler.kernels.linear import LinearFunction, LinearKernel, shared_kernel
from tools.command_line import run

_HIDDEN: Final = 4096
_SHAPES: Final = {"attention": (4096, 1024, 1024, 4096), "head": (32000,)}
"""The outputs of the matrices of each call."""
_ROWS: Final = (1, 2, 4, 8, 64, 512)
_STREAMS: Final = (1, 2, 4, 8, 16)
_CALLS: Final = 2
"""In a row, so that one that is short is not only its beginning."""

Layer = list[torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Cases:
    """The same layers in each form."""

    layers: list[Layer]
    plain: list[list[LinearFunction]]
    coded: dict[CodedFormat, list[list[LinearFunction]]]

    @classmethod
    def of(cls, kernel: LinearKernel, layers: list[Layer]) -> "_Cases":
        plain = [[kernel.prepare(matrix) for matrix in layer] for layer in layers]
        threads = torch.get_num_threads()
        coded = {
            kind: [[kernel.prepare(quantize(matrix, kind, threads)) for matrix in layer] for layer in layers]
            for kind in BITS
        }
        return cls(layers, plain, coded)


def main(out: Out = None, append: Append = False, quick: Quick = False) -> None:
    """Runs the benchmark."""
    kernel = shared_kernel(torch.get_num_threads())
    if kernel is None:
        raise typer.BadParameter("there are no native kernels for this CPU")
    most_bytes, rounds, rows = (2**26, 3, (1, 4)) if quick else (2**29, 15, _ROWS)
    with report(out, append) as results, torch.inference_mode():
        read = None
        for shape, outputs in _SHAPES.items():
            layers = _layers(outputs, most_bytes)
            read = read or _measure_read(results, kernel, layers, rounds)
            cases = _Cases.of(kernel, layers)
            for num_rows in rows:
                _measure(results, f"dense.{shape}", cases, num_rows=num_rows, read=read, rounds=rounds)


def _layers(outputs: Sequence[int], most_bytes: int) -> list[Layer]:
    """As many layers as there is memory for, two at least."""
    count = max(2, most_bytes // (2 * _HIDDEN * sum(outputs)))
    noise = torch.randn(max(outputs), _HIDDEN, generator=torch.Generator().manual_seed(0)).mul_(_HIDDEN**-0.5)
    return [[noise[:number].to(torch.bfloat16) for number in outputs] for _ in range(count)]


def _measure_read(results: Report, kernel: LinearKernel, layers: list[Layer], rounds: int) -> float:
    """Reports and returns bytes per second."""
    matrices = [matrix for layer in layers for matrix in layer]
    num_bytes = sum(matrix.nbytes for matrix in matrices)

    def read(streams: int) -> Callable[[], None]:
        def all_of_them() -> None:
            for matrix in matrices:
                kernel.pool.read(matrix.data_ptr(), matrix.nbytes, streams)

        return all_of_them

    samples = interleave({str(streams): read(streams) for streams in _STREAMS}, rounds)
    fastest = min(samples.values(), key=lambda seconds: sorted(seconds)[len(seconds) // 2])
    results.samples("dense.read", [num_bytes / seconds / 1e9 for seconds in fastest], "GB/s")
    return num_bytes / sorted(fastest)[len(fastest) // 2]


def _measure(results: Report, name: str, cases: _Cases, *, num_rows: int, read: float, rounds: int) -> None:
    rows = torch.randn(num_rows, _HIDDEN).to(torch.bfloat16)
    samples = interleave(
        {
            "bf16 native": _native(cases.plain, rows),
            "bf16 torch": _torch(cases.layers, rows),
            **{f"{kind} native": _native(coded, rows) for kind, coded in cases.coded.items()},
        },
        rounds,
    )
    layer = cases.layers[0]
    num_bytes = {"bf16": sum(matrix.nbytes for matrix in layer)}
    for coded in cases.coded:
        num_bytes[coded] = sum(coded_bytes(coded, (len(matrix), _HIDDEN)) for matrix in layer)
    for case, seconds in samples.items():
        kind, by = case.split()
        rates = [num_bytes[kind] * _CALLS / each for each in seconds]
        results.samples(f"{name}.{kind}.m{num_rows}.{by}", [rate / 1e9 for rate in rates], "GB/s")
        results.samples(f"{name}.{kind}.m{num_rows}.{by}_share", [rate / read for rate in rates], "ratio")
    _compare(results, name, samples, num_rows)


def _compare(results: Report, name: str, samples: Samples, num_rows: int) -> None:
    native, other = samples["bf16 native"], samples["bf16 torch"]
    results.samples(f"{name}.bf16.m{num_rows}.speedup", ratios(other, native), "ratio")
    faster = [min(pair) for pair in zip(native, other, strict=True)]
    for kind in BITS:
        coded = samples[f"{kind} native"]
        results.samples(f"{name}.{kind}.m{num_rows}.speedup_over_bf16", ratios(faster, coded), "ratio")


def _native(layers: list[list[LinearFunction]], rows: torch.Tensor) -> Callable[[], None]:
    turns = cycle(layers)

    def compute() -> None:
        for _ in range(_CALLS):
            for multiply in next(turns):
                multiply(rows)

    return compute


def _torch(layers: list[Layer], rows: torch.Tensor) -> Callable[[], None]:
    turns, row = cycle(layers), rows[0]

    def compute() -> None:
        for _ in range(_CALLS):
            for matrix in next(turns):
                if len(rows) == 1:
                    torch.mv(matrix, row)
                else:
                    functional.linear(rows, matrix)

    return compute


if __name__ == "__main__":
    run(main, __doc__)
