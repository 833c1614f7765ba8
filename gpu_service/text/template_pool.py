"""Renders chat templates in a few processes of their own, within bounds on time, memory and the number that wait.

One render costs a fraction of a millisecond more than it would in this process. A process is started when all others
are busy, takes about a second to be ready, and stays.
"""

import atexit
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

_WORKER = Path(__file__).with_name("template_worker.py")
_NUM_WORKERS = 2
_CPU_SECONDS = 1.0
"""Of one render. A published template takes a millisecond for a usual chat."""
_WALL_SECONDS = 20.0
"""Of one render, on a machine that has other things to do, with the start of the process."""
_WAIT_SECONDS = 5.0
"""For a free process."""
_MEMORY_BYTES = 2**30
_MAX_CHARACTERS = 2**26
_LAST_SECONDS = 0.2
_ENDED_FOR_TIME = (-signal.SIGPROF, -signal.SIGKILL)
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}


class RenderError(Exception):
    """The template refused the messages, or reached a bound. The text is the template's, or names the bound."""


class RenderTimeoutError(RenderError):
    """The template takes too long."""


class PoolBusyError(Exception):
    """No process became free in time."""


class TemplatePool:
    """The processes. Any thread may render."""

    def __init__(
        self,
        *,
        num_workers: int = _NUM_WORKERS,
        cpu_seconds: float = _CPU_SECONDS,
        memory_bytes: int = _MEMORY_BYTES,
        max_characters: int = _MAX_CHARACTERS,
        wait_seconds: float = _WAIT_SECONDS,
    ) -> None:
        """Starts nothing yet.

        Args:
            num_workers: The most processes.
            cpu_seconds: The CPU time of one render.
            memory_bytes: What a render may add to its process.
            max_characters: The longest text.
            wait_seconds: How long a render waits for a free process.
        """
        self._limits = [str(cpu_seconds), str(memory_bytes), str(max_characters)]
        self._cpu_seconds = cpu_seconds
        self._wait_seconds = wait_seconds
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()  # None: a process that is yet to be started
        for _ in range(num_workers):
            self._idle.put(None)

    def render(self, source: str, messages: Sequence[Mapping[str, Any]], arguments: Mapping[str, Any]) -> str:
        """The text that a Jinja source makes of messages.

        Args:
            source: The template.
            messages: With values that JSON has.
            arguments: Of transformers' render_jinja_template, and variables of the template; values that JSON has.

        Raises:
            RenderError: See there.
            PoolBusyError: See there.
        """
        job = json.dumps({"source": source, "messages": list(messages), "arguments": dict(arguments)}).encode() + b"\n"
        try:
            worker = self._idle.get(timeout=self._wait_seconds)
        except queue.Empty:
            raise PoolBusyError("other chats are being rendered") from None
        try:
            if worker is None or not worker.is_alive:
                worker = _Worker(self._limits)
            answer = worker.ask(job)
        finally:
            self._idle.put(worker)
        if answer is None:
            raise RenderTimeoutError(f"it takes more than {self._cpu_seconds:g} s of CPU time")
        if "error" in answer:
            raise RenderError(answer["error"])
        return answer["text"]

    def close(self) -> None:
        """Ends the processes that are idle. Those that are busy end within the bound on time."""
        while not self._idle.empty():
            if worker := self._idle.get_nowait():
                worker.end()


class _Worker:
    """One process. Used by one thread at a time."""

    def __init__(self, limits: Sequence[str]) -> None:
        # -P: the folder of the file is no place to import from
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER), *limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | _ENVIRONMENT,
        )

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, job: bytes) -> dict[str, str] | None:
        """The answer; None if the process was ended for the time that it took. No answer ends the process.

        Raises:
            RenderError: The process ended by itself.
        """
        # a process that hangs without using the CPU is ended from here
        timer = threading.Timer(_WALL_SECONDS, self._process.kill)
        timer.daemon = True
        timer.start()
        line = b""
        try:
            line = self._exchange(job)
        finally:
            timer.cancel()
            if not line.endswith(b"\n"):
                self.kill()
        if line.endswith(b"\n"):
            answer: dict[str, str] = json.loads(line)
            return answer
        if self._process.returncode not in _ENDED_FOR_TIME:
            raise RenderError(f"its process ended with status {self._process.returncode}")
        return None

    def kill(self) -> None:
        """Ends the process."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_LAST_SECONDS)  # if it is ending, its own status says why
        self._process.kill()
        self._process.wait()
        for pipe in self._pipes():
            with contextlib.suppress(BrokenPipeError):  # what was not written is written now
                pipe.close()

    def end(self) -> None:
        """Ends the process while it is idle."""
        self._process.kill()
        self.kill()

    def _exchange(self, job: bytes) -> bytes:
        jobs, answers = self._pipes()
        try:
            jobs.write(job)
            jobs.flush()
            return answers.readline()
        except BrokenPipeError:
            return b""

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout


@cache
def shared_pool() -> TemplatePool:
    """The pool of this process."""
    pool = TemplatePool()
    atexit.register(pool.close)
    return pool


os.register_at_fork(after_in_child=shared_pool.cache_clear)  # the processes are the parent's
