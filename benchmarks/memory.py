"""`python -m benchmarks.memory`: resident memory of both services with a gigabyte of weights, and its bounds.

memory.SERVICE.CHECKPOINT.MOMENT.KIND  bytes of KIND (total, anon, file) when the pair serves, or has generated
memory.gpu_service.bound               dense bytes x 1.25 + 600 MB, the limit of the total
memory.gpu_service.over_bound          total over that bound
memory.cpu_expert_service.anon_growth  anonymous bytes in addition to those with a tiny checkpoint: near 0, since the
                                       weights are not copied
memory.cpu_expert_service.over_experts anon_growth over the bytes of the experts' weights

The checkpoint is written by the tests' helpers.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.harness.disk import check_room
from benchmarks.harness.results import Append, Out, Report, report
from client import Client
from fiddler.checkpoint import Checkpoint
from pair import Pair
from tests.support import checkpoints
from tests.support.large_checkpoint import large_bytes, write_large
from tools.command_line import run

_LARGE_BYTES = 10**9
_DENSE_FACTOR = 1.25
_FIXED_BYTES = 600 * 10**6
_KINDS = {"total": "VmRSS", "anon": "RssAnon", "file": "RssFile"}
_SERVICES = ("gpu_service", "cpu_expert_service")

_Resident = dict[tuple[str, str, str], int]
"""Bytes by service, moment and kind."""


def main(
    out: Out = None,
    append: Append = False,
    runs: Annotated[int, typer.Option(help="How often each pair is started.")] = 3,
) -> None:
    """Runs the benchmark."""
    remedy = "name a directory on another disk with TMPDIR"
    check_room(None, {"a large checkpoint": large_bytes(_LARGE_BYTES)}, remedy=remedy)
    with report(out, append) as results, tempfile.TemporaryDirectory() as parent:
        directories = {"tiny": Path(parent) / "tiny", "large": Path(parent) / "large"}
        checkpoints.write("mixtral", directories["tiny"], dtype=torch.bfloat16)
        write_large(directories["large"], _LARGE_BYTES)
        for directory in directories.values():
            checkpoints.write_tokenizer(directory)
        measured = [{name: _measure(path) for name, path in directories.items()} for _ in range(runs)]
        _report(results, measured, Checkpoint.open(directories["large"]))


def _measure(model: Path) -> _Resident:
    """Starts a pair and reads its memory twice: when it serves, and after one generation."""
    resident: _Resident = {}
    with tempfile.TemporaryFile() as log, Pair(model, log=log, gpu_arguments=["--device", "cpu"]) as pair:
        _read(pair, "serving", resident)
        with Client(pair.target) as client, client.generate("one two three", max_tokens=8) as generation:
            for _ in generation:
                pass
        _read(pair, "generated", resident)
    return resident


def _read(pair: Pair, moment: str, resident: _Resident) -> None:
    for service in _SERVICES:
        lines = Path(f"/proc/{pair.processes[service].pid}/status").read_text().splitlines()
        status = dict(line.split(":", 1) for line in lines)
        for kind, key in _KINDS.items():
            resident[service, moment, kind] = 1024 * int(status[key].split()[0])


def _report(out: Report, starts: list[dict[str, _Resident]], large: Checkpoint) -> None:
    out.samples("memory.checkpoint.dense", [large.dense_bytes], "bytes")
    out.samples("memory.checkpoint.experts", [large.expert_bytes], "bytes")
    for checkpoint in ("tiny", "large"):
        for service, moment, kind in starts[0][checkpoint]:
            values = [start[checkpoint][service, moment, kind] for start in starts]
            out.samples(f"memory.{service}.{checkpoint}.{moment}.{kind}", values, "bytes")

    def derived(name: str, value: Callable[[dict[str, _Resident]], float], unit: str) -> None:
        out.samples(f"memory.{name}", [value(start) for start in starts], unit)

    bound = int(large.dense_bytes * _DENSE_FACTOR) + _FIXED_BYTES
    out.samples("memory.gpu_service.bound", [bound], "bytes")
    derived(
        "gpu_service.over_bound", lambda start: start["large"]["gpu_service", "generated", "total"] / bound, "ratio"
    )
    derived("cpu_expert_service.anon_growth", _anon_growth, "bytes")
    derived("cpu_expert_service.over_experts", lambda start: _anon_growth(start) / large.expert_bytes, "ratio")


def _anon_growth(start: dict[str, _Resident]) -> int:
    key = ("cpu_expert_service", "generated", "anon")
    return start["large"][key] - start["tiny"][key]


if __name__ == "__main__":
    run(main, __doc__)
