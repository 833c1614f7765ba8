"""`python -m benchmarks.peers`: this project, transformers, llama.cpp and KTransformers' kernels on the same weights.

peers.SYSTEM.decode                tokens per second after the first, as the caller receives them
peers.SYSTEM.prefill_512           prompt tokens per second until the first token arrives
peers.SYSTEM.memory                resident bytes of its processes, with those of mapped files
peers.SYSTEM.bandwidth_share       bytes of weights that a token reads, times decode, over the memory's read bandwidth
peers.SYSTEM.same_tokens           share of greedy tokens that are those of the first system of its session
peers.OURS.CASE.over.SYSTEM        ours over another, round by round

The model is two layers of Mixtral-8x7B's shape or four of Qwen3-30B-A3B's (--model), with random weights, kept in
--models; names of the latter's results begin with peers.qwen3_30b_a3b. SYSTEM is transformers, llama_cpp_FORMAT,
ktransformers_FORMAT or fiddler_FORMAT; our int8 and int4 have dense layers in int8, int4_dense_int4 has them in 4 bits,
as llama.cpp's Q4_0 and Q4_K have. Systems of one session are loaded together and take turns, and only one computes at a
time; sessions follow one another, since memory does not hold all. llama.cpp is compiled for this CPU, and
KTransformers' kernels installed, in an environment of their own (--environment), which is kept. KTransformers' kernels
compute experts only; transformers computes the rest.
"""

import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Final

import typer

from benchmarks.harness.results import Append, Out, Quick, report
from benchmarks.harness.rounds import ratios
from benchmarks.harness.targets import Judge, Target
from benchmarks.peers import systems
from benchmarks.peers.environment import VERSIONS, Environment, PeerError
from benchmarks.peers.models import RECIPES, Models
from benchmarks.peers.shapes import MODELS, Name
from benchmarks.peers.systems import System
from benchmarks.peers.table import Measured, table
from gpu_service.startup import read_bandwidth
from tools.command_line import run

Start = Callable[[], System]

_PROMPT_TOKENS: Final = 512
_SHORT_PROMPT_TOKENS: Final = 16
_DECODED: Final = 25
_PAUSE_SECONDS: Final = 0.3  # until the threads of the system that was measured last sleep
_OURS: Final = "fiddler"
_CACHE: Final = Path.home() / ".cache" / "fiddler"

SESSIONS: Final = (
    # of each, what needs more memory while it is loaded comes first; together they take less than 22 GB
    ("ktransformers_bf16", "fiddler_bf16"),
    ("fiddler_bf16", "llama_cpp_BF16", "fiddler_int4_dense_int4"),
    ("fiddler_bf16", "transformers", "fiddler_int8", "fiddler_int4"),
    ("ktransformers_int8", "fiddler_int8", "llama_cpp_Q8_0"),
    ("ktransformers_int4", "fiddler_int4", "fiddler_int4_dense_int4", "llama_cpp_Q4_0", "llama_cpp_Q4_K"),
)
TARGETS: Final = {
    "peers.fiddler_int8.decode.over.fiddler_bf16": Target(1.8),
    "peers.fiddler_int8.decode.over.llama_cpp_Q8_0": Target(1.4),
    "peers.fiddler_int4.decode.over.fiddler_bf16": Target(2.3),
    "peers.fiddler_int4.decode.over.llama_cpp_Q4_0": Target(1.3),
    "peers.fiddler_int4.decode.over.llama_cpp_Q4_K": Target(1.3),
    "peers.fiddler_int4_dense_int4.decode.over.fiddler_bf16": Target(2.3),
    "peers.fiddler_int4_dense_int4.decode.over.llama_cpp_Q4_0": Target(1.3),
    "peers.fiddler_int4_dense_int4.decode.over.llama_cpp_Q4_K": Target(1.3),
    "peers.fiddler_bf16.prefill_512.over.llama_cpp_BF16": Target(2.0),
    "peers.fiddler_int8.prefill_512.over.llama_cpp_Q8_0": Target(2.0),
    "peers.fiddler_int4.prefill_512.over.llama_cpp_Q4_0": Target(2.0),
    "peers.fiddler_int4.prefill_512.over.llama_cpp_Q4_K": Target(2.0),
    "peers.fiddler_int4_dense_int4.prefill_512.over.llama_cpp_Q4_0": Target(2.0),
    "peers.fiddler_int4_dense_int4.prefill_512.over.llama_cpp_Q4_K": Target(2.0),
}


def main(
    out: Out = None,
    append: Append = False,
    model: Annotated[Name, typer.Option(help="Whose shape the model has.")] = "mixtral_8x7b",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each session.")] = 7,
    models: Annotated[
        Path, typer.Option(help="Directory of the models, up to 30 GB each; written if missing.")
    ] = _CACHE / "peers-models",
    environment: Annotated[Path, typer.Option(help="Virtual environment of the peers; made if missing.")] = _CACHE
    / "peers",
    jobs: Annotated[int, typer.Option(min=0, help="Compilers at one time. 0: one for each CPU.")] = 0,
    only: Annotated[list[str] | None, typer.Option(help="Sessions that hold this system; repeatable.")] = None,
    quick: Quick = False,
) -> None:
    """Runs the comparison."""
    threads = len(os.sched_getaffinity(0))
    peers = Environment(environment)
    chosen = MODELS[model]
    files = Models((models / "small" if quick else models) / chosen.directory)
    shape = chosen.small if quick else chosen.full
    files.check_room(shape)
    files.write_checkpoints(shape)
    run_of = _Run(
        peers, files, threads=threads, jobs=jobs or threads, rounds=2 if quick else rounds, results=chosen.results
    )
    run_of.prepare()
    with report(out, append) as results:
        judge = Judge(results, TARGETS)
        results.record(f"{chosen.results}.versions", **VERSIONS, threads=threads, llama_cpp_amx=peers.has_amx)
        for names in SESSIONS:
            if not only or set(only) & set(names):
                run_of.session(names, judge)
        run_of.summarise(judge)
        print(table(run_of.systems, run_of.failures, run_of.bytes_per_second), file=sys.stderr)
        judge.summarise()


class _Run:
    """Systems that have been measured so far, and those that could not be."""

    def __init__(
        self, peers: Environment, files: Models, *, threads: int, jobs: int, rounds: int, results: str = "peers"
    ) -> None:
        self.systems: dict[str, Measured] = {}
        self.failures: dict[str, str] = {}
        self.bytes_per_second = 0.0
        self._peers = peers
        self._files = files
        self._threads = threads
        self._jobs = jobs
        self._rounds = rounds
        self._results = results

    def prepare(self) -> None:
        """Installs the peers, and writes their files; notes those that cannot be used here."""
        try:
            self._peers.prepare(self._jobs)
            self._files.write_gguf(self._peers)
        except PeerError as error:
            self._fail("llama_cpp", str(error))
        try:
            self._peers.install_ktransformers()
        except PeerError as error:
            self._fail("ktransformers", str(error))

    def session(self, names: tuple[str, ...], judge: Judge) -> None:
        """Measures systems that fit into memory together, in turn."""
        with ExitStack() as stack:
            running: dict[str, System] = {}
            for name in names:
                if name not in self.failures:
                    self._start(name, running, stack)
            samples = {name: Measured(_format_of(name), weight_bytes=self._weight_bytes(name)) for name in running}
            tokens: dict[str, list[int]] = {name: [] for name in running}
            for number in range(-1, self._rounds):
                for name in list(running)[:: 1 if number % 2 else -1]:
                    self._measure(name, running, number, samples, tokens)
            bandwidth = read_bandwidth.host_bytes_per_second()
            self.bytes_per_second = max(self.bytes_per_second, bandwidth)
            for name, system in running.items():
                samples[name].memory_bytes = system.memory_bytes()
        self._report(samples, tokens, judge)

    def _start(self, name: str, running: dict[str, System], stack: ExitStack) -> None:
        try:
            running[name] = stack.enter_context(self._make(name))
        except PeerError as error:
            if name.startswith("llama_cpp") and "signal" in str(error) and self._peers.has_amx:
                try:
                    self._peers.rebuild_without_amx(self._jobs)
                    running[name] = stack.enter_context(self._make(name))
                except PeerError as again:
                    error = again
                else:
                    return
            self._fail(name, str(error))

    def _measure(
        self,
        name: str,
        running: dict[str, System],
        number: int,
        samples: Mapping[str, Measured],
        tokens: Mapping[str, list[int]],
    ) -> None:
        """One round of one system; a system that fails takes no further part."""
        time.sleep(_PAUSE_SECONDS)
        try:
            short, long = (_prompt(length, number) for length in (_SHORT_PROMPT_TOKENS, _PROMPT_TOKENS))
            decoded = running[name].generate(short, _DECODED)
            prefilled = running[name].generate(long, 1)
        except PeerError as error:
            self._fail(name, str(error))
            del running[name]
            return
        if number >= 0:
            samples[name].decode.append(1 / decoded.later_seconds)
            samples[name].prefill.append(_PROMPT_TOKENS / prefilled.first_seconds)
            tokens[name].extend([*decoded.token_ids, *prefilled.token_ids])

    def _report(self, samples: Mapping[str, Measured], tokens: Mapping[str, list[int]], judge: Judge) -> None:
        measured = {name: each for name, each in samples.items() if name not in self.failures}
        for ours in (name for name in measured if name.startswith(_OURS)):
            for other in measured:
                if other != ours and _are_compared(ours, other):
                    for case in ("decode", "prefill_512"):
                        over = ratios(_speeds(measured[ours], case), _speeds(measured[other], case))
                        judge.samples(f"{self._results}.{ours}.{case}.over.{other}", over, "ratio")
        first = next(iter(measured), None)
        for name, each in measured.items():
            if name != first and first is not None:
                same = [one == other for one, other in zip(tokens[name], tokens[first], strict=True)]
                judge.samples(f"{self._results}.{name}.same_tokens.as.{first}", [sum(same) / len(same)], "ratio")
            earlier = self.systems.setdefault(name, each)
            if earlier is not each:
                earlier.decode += each.decode
                earlier.prefill += each.prefill

    def summarise(self, judge: Judge) -> None:
        """Writes the figures of each system over all its sessions."""
        for name, each in self.systems.items():
            judge.samples(f"{self._results}.{name}.decode", each.decode, "tokens/s")
            judge.samples(f"{self._results}.{name}.prefill_512", each.prefill, "tokens/s")
            judge.samples(f"{self._results}.{name}.memory", [each.memory_bytes], "bytes")
            shares = [each.weight_bytes * speed / self.bytes_per_second for speed in each.decode]
            judge.samples(f"{self._results}.{name}.bandwidth_share", shares, "ratio")
        judge.samples(f"{self._results}.read_bandwidth", [self.bytes_per_second / 1e9], "GB/s")
        for name, reason in self.failures.items():
            judge.out.record(f"{self._results}.not_measured", system=name, reason=reason)

    def _make(self, name: str) -> System:
        kind, _, label = name.rpartition("_")
        python = self._peers.python
        if name.startswith("llama_cpp"):
            label = name.removeprefix("llama_cpp_")
            return systems.llama_cpp(self._peers, self._files.gguf(label), self._threads)
        if kind == "ktransformers":
            return systems.ktransformers(python, self._files.plain, label, self._threads)
        if name.startswith(_OURS):
            label = _label(name)
            return systems.Ours(self._files.plain if label == "bf16" else self._files.coded(label))
        return systems.transformers(self._files.plain, self._threads)

    def _weight_bytes(self, name: str) -> int:
        if name.startswith("llama_cpp"):
            return self._files.gguf_bytes(name.removeprefix("llama_cpp_"))
        if name.startswith(_OURS):
            return self._files.coded_bytes(_label(name))
        return self._files.kernel_bytes("bf16" if name == "transformers" else name.rpartition("_")[2])

    def _fail(self, name: str, reason: str) -> None:
        """Notes that a system, or all whose names begin so, cannot be measured."""
        known = {each for names in SESSIONS for each in names}
        for each in {name} & known or {each for each in known if each.startswith(name)}:
            self.failures[each] = reason
            print(f"{each}: {reason}", file=sys.stderr)


def _prompt(length: int, number: int) -> list[int]:
    """A new prompt in every round, the same for all systems."""
    return [3 + (position * 37 + number * 11) % 250 for position in range(length)]


def _are_compared(ours: str, other: str) -> bool:
    """Whether ours is compared with another; of ours only with bf16, and with what differs in the dense part alone."""
    return not other.startswith(_OURS) or other == "fiddler_bf16" or ours.startswith(f"{other}_dense_")


def _speeds(measured: Measured, case: str) -> list[float]:
    return measured.decode if case == "decode" else measured.prefill


def _format_of(name: str) -> str:
    """The format of a system's weights, for people."""
    if name.startswith("llama_cpp"):
        return name.removeprefix("llama_cpp_")
    if name.startswith(_OURS):
        recipe = RECIPES.get(_label(name))
        return f"{recipe.experts}, dense {recipe.dense}" if recipe else "bf16"
    label = "bf16" if name == "transformers" else name.rpartition("_")[2]
    return label if label == "bf16" else f"{label}, dense bf16"


def _label(name: str) -> str:
    """What the files of one of our systems are called: bf16, or a name of RECIPES."""
    return name.removeprefix(f"{_OURS}_")


if __name__ == "__main__":
    run(main, __doc__)
