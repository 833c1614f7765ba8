"""What is compared: each generates greedily from token ids, in processes of its own."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Protocol, Self

import psutil

from benchmarks.peers.environment import Environment, PeerError
from client import Client, GenerationChunk
from pair import Pair

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Generated:
    """What a prompt gave, and how long it took."""

    first_seconds: float
    """Until the first token."""
    later_seconds: float
    """For each token after it; 0 if there is only one."""
    token_ids: list[int]


class System(Protocol):
    """An engine with a model, within `with`."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def generate(self, prompt: list[int], num_tokens: int) -> Generated:
        """Generates greedily.

        Raises:
            PeerError: The system has ended.
        """
        ...

    def memory_bytes(self) -> int:
        """Resident bytes of its processes, with those of mapped files."""
        ...


class Worker:
    """A module that answers lines, in a process; see answering.py."""

    def __init__(
        self, python: Path, module: str, *arguments: str, settings: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Starts nothing yet.

        Args:
            python: The interpreter.
            module: In this folder.
            arguments: Of the module.
            settings: Environment variables.
        """
        self._environment = {**os.environ, **settings}
        self._command = [str(python), "-m", f"benchmarks.peers.{module}", *arguments]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=ROOT,
            env=self._environment,
        )
        try:
            self._read()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.kill()  # it holds nothing but memory
        self._process.communicate()
        self._log.close()

    def generate(self, prompt: list[int], num_tokens: int) -> Generated:
        """See System."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"prompt": prompt, "num_tokens": num_tokens}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, and _read says how
        answer = self._read()
        return Generated(answer["first"], answer["later"], answer["tokens"])

    def memory_bytes(self) -> int:
        """See System."""
        assert self._process is not None
        return int(psutil.Process(self._process.pid).memory_info().rss)

    def _read(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        status = self._process.wait()
        self._log.seek(0)
        lines = [line for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        how = f"signal {-status}" if status < 0 else f"status {status}"
        raise PeerError(f"it ended with {how}: {lines[-1] if lines else 'it said nothing'}")


class Ours:
    """The pair, called over gRPC as its callers do."""

    def __init__(self, model: Path) -> None:
        """Starts nothing yet."""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        flags = ("--dtype", "bfloat16")
        self._pair = Pair(
            model, log=self._log, gpu_arguments=("--device", "cpu", "--max-slots", "1", *flags), cpu_arguments=flags
        )
        self._client: Client | None = None

    def __enter__(self) -> Self:
        self._pair.__enter__()
        self._client = Client(self._pair.target)
        self._client.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            self._client.close()
        self._pair.close()
        self._log.close()

    def generate(self, prompt: list[int], num_tokens: int) -> Generated:
        """See System; timed in the caller."""
        assert self._client is not None
        token_ids: list[int] = []
        arrivals: list[float] = []
        began = time.perf_counter()
        with self._client.generate(prompt, max_tokens=num_tokens, min_tokens=num_tokens, temperature=0) as generation:
            for event in generation:
                if isinstance(event, GenerationChunk):
                    token_ids += event.token_ids
                    arrivals += [time.perf_counter()] * len(event.token_ids)
        later = (arrivals[-1] - arrivals[0]) / (len(arrivals) - 1) if len(arrivals) > 1 else 0
        return Generated(arrivals[0] - began, later, token_ids)

    def memory_bytes(self) -> int:
        """See System."""
        processes = (psutil.Process(process.pid) for process in self._pair.processes.values())
        return sum(int(process.memory_info().rss) for process in processes)


def transformers(model: Path, threads: int) -> Worker:
    """Transformers with its own kernels."""
    return Worker(Path(sys.executable), "transformers_worker", str(model), str(threads))


def ktransformers(python: Path, model: Path, method: str, threads: int) -> Worker:
    """Transformers with KTransformers' kernels for experts."""
    return Worker(python, "transformers_worker", str(model), str(threads), method)


def llama_cpp(environment: Environment, file: Path, threads: int) -> Worker:
    """llama.cpp on a GGUF file."""
    return Worker(environment.python, "llama_worker", str(file), str(threads), settings=environment.settings)
