"""Counts what a program gives the device to do, and where in the code the host waits for it."""

import sys
import threading
from collections import Counter

_WATCHED = ("/gpu_service/", "/fiddler/", "/transformers/", "/benchmarks/")
"""Folders whose code is named as the place of a wait: the innermost frame in one of them."""


class Counts:
    """What was counted since `clear`. Streams' queues and marks are not counted, only what costs a launch or a wait."""

    def __init__(self) -> None:
        self.kernels: Counter[str] = Counter()
        """Launches by operation."""
        self.copies: Counter[str] = Counter()
        """Transfers between host and device: "to the device", "to the host"."""
        self.waits: Counter[str] = Counter()
        """Waits of the host, by "why, at file:line". Waits of the thread that copies experts are left out."""
        self.graphs = 0
        """Replays."""

    @property
    def num_kernels(self) -> int:
        """Launches in all."""
        return sum(self.kernels.values())

    @property
    def num_waits(self) -> int:
        """Waits in all."""
        return sum(self.waits.values())

    def waits_in(self, *folders: str) -> int:
        """Waits in the code of some folders, such as "moe"."""
        return sum(count for where, count in self.waits.items() if any(f" {folder}/" in where for folder in folders))

    def clear(self) -> None:
        """Starts to count from 0."""
        self.kernels.clear()
        self.copies.clear()
        self.waits.clear()
        self.graphs = 0

    def add_wait(self, why: str) -> str:
        """Counts a wait. Returns what it is counted as."""
        where = f"{why}, at {_place()}"
        if threading.current_thread().name != "copier":
            self.waits[where] += 1
        return where


def _place() -> str:
    """Folder, file and line of the innermost frame that is watched."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if any(folder in name for folder in _WATCHED):
            return f"{'/'.join(name.split('/')[-2:])}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "?"
