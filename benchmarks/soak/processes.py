"""What both processes of a pair take, sampled while they are under load, and whether that is flat."""

import contextlib
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import psutil

from pair import Pair

MIB = 2**20
SERVICES = ("gpu_service", "cpu_expert_service")
GROWTH_MIB = 48.0
"""How much more memory the last quarter of a flat run may take than the second, by their medians."""
GROWTH_DESCRIPTORS = 16
GROWTH_THREADS = 8


@dataclass(slots=True)
class Samples:
    """What one service took, sample by sample."""

    seconds: list[float] = field(default_factory=list)
    mib: list[float] = field(default_factory=list)
    descriptors: list[float] = field(default_factory=list)
    threads: list[float] = field(default_factory=list)

    def mib_per_hour(self) -> float:
        """The slope of memory after the first quarter, by least squares; 0 if there are too few samples."""
        begin = len(self.seconds) // 4
        if len(self.seconds) - begin < 2:
            return 0.0
        return 3600 * statistics.linear_regression(self.seconds[begin:], self.mib[begin:]).slope

    def problems(self) -> list[str]:
        """What is not flat: the last quarter of the samples compared with the second."""
        found = []
        for what, values, growth in (
            ("MiB", self.mib, GROWTH_MIB),
            ("descriptors", self.descriptors, GROWTH_DESCRIPTORS),
            ("threads", self.threads, GROWTH_THREADS),
        ):
            before, after = _quarter(values, 1), _quarter(values, 3)
            if before and after and statistics.median(after) > statistics.median(before) + growth:
                found.append(f"{statistics.median(before):.0f} {what} grew to {statistics.median(after):.0f}")
        return found


def _quarter(values: Sequence[float], number: int) -> Sequence[float]:
    return values[len(values) * number // 4 : len(values) * (number + 1) // 4]


class Watch:
    """Samples both services of a pair every few seconds, within `with Watch(...)`.

    A process that has just been started is left out: the CPU expert service after each kill.
    """

    def __init__(self, pair: Pair, every_seconds: float) -> None:
        """Samples nothing yet."""
        self.samples = {service: Samples() for service in SERVICES}
        self._pair = pair
        self._every_seconds = every_seconds
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join()

    def _run(self) -> None:
        elapsed = 0.0
        while not self._enough.wait(self._every_seconds):
            elapsed += self._every_seconds
            for service, samples in self.samples.items():
                with contextlib.suppress(psutil.Error):
                    process = psutil.Process(self._pair.processes[service].pid)
                    taken = process.memory_info().rss / MIB, process.num_fds(), process.num_threads()
                    age_seconds = time.time() - process.create_time()
                    if process.status() != psutil.STATUS_ZOMBIE and age_seconds > 2 * self._every_seconds:
                        samples.seconds.append(elapsed)
                        samples.mib.append(taken[0])
                        samples.descriptors.append(taken[1])
                        samples.threads.append(taken[2])
