"""What torch.cuda.CUDAGraph is: work that was captured rather than done, to be enqueued again and again."""

from collections.abc import Callable
from typing import Any

from tests.support.imitated_cuda.streams import Stream


class Graph:
    """Stands for torch.cuda.CUDAGraph. Nothing is done while it is captured; a wait or an event then raises."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.work: list[Callable[[], Any]] = []

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
        Stream.machine.begin_capture(self)

    def capture_end(self) -> None:
        Stream.machine.end_capture(self)

    def pool(self) -> tuple[int, int]:
        return (0, 0)

    def reset(self) -> None:
        self.work.clear()

    def replay(self) -> None:
        machine, work = Stream.machine, list(self.work)
        machine.counts.graphs += 1

        def run() -> None:
            for each in work:
                each()

        machine.current_stream().enqueue(run)
