"""`python -m benchmarks.convert`: how fast a bf16 checkpoint is converted, compared with the disk and the memory.

A round drops the source from the page cache, reads it, writes as much as a conversion writes, drops it again, and
converts it. A conversion cannot be faster than both the disk (reading and writing one after the other, as measured) and
the memory (reading all of it once) allow: `share` is the longer of these two times over the conversion's.

convert.read.speed                  GB/s of reading the source from the disk
convert.write.speed                 GB/s of writing to the disk, to the point where all is on it
convert.memory.speed                GB/s of reading from memory with all cores
convert.FORMAT.seconds_per_gb       s for each GB (10^9 bytes) of the source, everything included: read, quantised,
                                    written, read back, checked, renamed
convert.FORMAT.share                ratio, see above
convert.FORMAT.own_memory           peak bytes of the process's own memory beyond what it had, without files

FORMAT is int8 or int4. The source is written to --directory, and so are the results: the disk of that directory is
measured.
"""

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Final

import psutil
import typer

from benchmarks.harness.disk import check_room
from benchmarks.harness.results import Append, Out, Quick, report
from benchmarks.harness.targets import Judge, Target
from fiddler import process
from tools.command_line import run

_GB: Final = 10**9
_PIECE_BYTES: Final = 16 * 2**20
_POLL_SECONDS: Final = 0.01
_FORMATS: Final = ("int8", "int4")
_LARGEST: Final = 0.6
"""A bound on the bytes of a result over those of its source: 8 of 16 bits, scales, and what stays plain."""
TARGETS: Final = {f"convert.{kind}.share": Target(0.5) for kind in _FORMATS}


def main(
    out: Out = None,
    append: Append = False,
    quick: Quick = False,
    rounds: Annotated[int, typer.Option(help="Conversions of each format.")] = 5,
    gigabytes: Annotated[float, typer.Option(help="Size of the source, in GB.")] = 1.5,
    directory: Annotated[Path | None, typer.Option(help="Where files are written; unset: the temporary one.")] = None,
) -> None:
    """Runs the benchmark."""
    process.prepare()
    from gpu_service.startup.read_bandwidth import host_bytes_per_second
    from tests.support.large_checkpoint import large_bytes, write_large

    if quick:
        rounds, gigabytes = 1, 0.25
    source_bytes = large_bytes(int(gigabytes * _GB))
    sizes = {"source": source_bytes, "written": source_bytes // 3, "result": int(_LARGEST * source_bytes)}
    check_room(directory, sizes, remedy="name a directory on another disk with --directory")
    with report(out, append) as results, tempfile.TemporaryDirectory(prefix="fiddler-", dir=directory) as name:
        source = write_large(Path(name) / "source", int(gigabytes * _GB))
        os.sync()
        num_bytes = sum(path.stat().st_size for path in source.glob("*.safetensors"))
        results.record("convert.subject", bytes=num_bytes)
        judge = Judge(results, TARGETS)
        memory = [host_bytes_per_second() for _ in range(rounds)]
        judge.samples("convert.memory.speed", [speed / _GB for speed in memory], "GB/s")
        speeds: dict[str, list[float]] = {"read": [], "write": []}
        samples = {kind: _Samples() for kind in _FORMATS}
        for number in range(rounds):
            for kind, each in samples.items():
                read, write = _read(source), _write(Path(name) / "written", num_bytes // 3)
                speeds["read"].append(read / _GB)
                speeds["write"].append(write / _GB)
                each.add(*_convert(source, Path(name) / "result", kind), read=read, write=write, memory=memory[number])
        for what, values in speeds.items():
            judge.samples(f"convert.{what}.speed", values, "GB/s")
        for kind, each in samples.items():
            judge.samples(f"convert.{kind}.seconds_per_gb", each.seconds_per_gb, "s")
            judge.samples(f"convert.{kind}.share", each.shares, "ratio")
            judge.samples(f"convert.{kind}.own_memory", each.own_bytes, "bytes")
        judge.summarise()


class _Samples:
    """Of one format."""

    def __init__(self) -> None:
        self.seconds_per_gb: list[float] = []
        self.shares: list[float] = []
        self.own_bytes: list[float] = []

    def add(
        self,
        seconds: float,
        source_bytes: int,
        result_bytes: int,
        own_bytes: int,
        *,
        read: float,
        write: float,
        memory: float,
    ) -> None:
        """Adds a conversion, with the speeds in bytes per second that were measured before it."""
        self.seconds_per_gb.append(seconds / source_bytes * _GB)
        self.shares.append(max(source_bytes / read + result_bytes / write, source_bytes / memory) / seconds)
        self.own_bytes.append(own_bytes)


def _convert(source: Path, target: Path, kind: str) -> tuple[float, int, int, int]:
    """Seconds, bytes of the source, bytes of the result, and the peak of own memory of a conversion from the disk."""
    from fiddler.checkpoint import Checkpoint
    from fiddler.convert.conversion import Conversion
    from fiddler.convert.recipe import Recipe

    _drop(source)
    began = time.perf_counter()
    with closing(Checkpoint.open(source)) as checkpoint, _peak_of_own_memory() as peak:
        Conversion(checkpoint, target, Recipe("int8" if kind == "int8" else "int4")).run()
        source_bytes = sum(path.stat().st_size for path in checkpoint.files)
    seconds = time.perf_counter() - began
    result_bytes = sum(path.stat().st_size for path in target.glob("*.safetensors"))
    shutil.rmtree(target)
    return seconds, source_bytes, result_bytes, max(peak)


@contextmanager
def _peak_of_own_memory() -> Iterator[list[int]]:
    """A list of what this process's own memory was beyond its size at the beginning, read every few milliseconds."""
    this = psutil.Process()
    before = _own_bytes(this)
    seen = [0]
    done = threading.Event()

    def look() -> None:
        while not done.wait(_POLL_SECONDS):
            seen.append(_own_bytes(this) - before)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def _own_bytes(this: psutil.Process) -> int:
    memory = this.memory_info()
    return int(memory.rss - memory.shared)


def _drop(directory: Path) -> None:
    """Drops a directory's files from the page cache."""
    for path in directory.iterdir():
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def _read(directory: Path) -> float:
    """Bytes per second of reading a directory's weights from the disk."""
    _drop(directory)
    num_bytes = 0
    buffer = bytearray(_PIECE_BYTES)
    began = time.perf_counter()
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                num_bytes += count
    return num_bytes / (time.perf_counter() - began)


def _write(path: Path, num_bytes: int) -> float:
    """Bytes per second of writing a file to the disk."""
    piece = os.urandom(_PIECE_BYTES)
    began = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(-(-num_bytes // _PIECE_BYTES)):
            file.write(piece)
        os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    written = path.stat().st_size
    path.unlink()
    return written / seconds


if __name__ == "__main__":
    run(main, __doc__)
