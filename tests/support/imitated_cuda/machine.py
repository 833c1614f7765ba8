"""The imitated device as a whole: its streams, its memory, what is captured, and what was counted."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.imitated_cuda.counts import Counts
from tests.support.imitated_cuda.graphs import Graph
from tests.support.imitated_cuda.memory import Memory
from tests.support.imitated_cuda.schedules import Pace, Schedule
from tests.support.imitated_cuda.streams import Point, Stream, Work


class Machine:
    """One device. All that touches it holds its lock."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.reset("eager", seed=0, memory_bytes=2**34)

    def reset(self, schedule: Schedule, *, seed: int, memory_bytes: int) -> None:
        """Forgets all streams, and counts from 0."""
        self.counts = Counts()
        self.memory = Memory(self, memory_bytes)
        self.num_streams_made = 0
        self.num_events_made = 0
        self.forbids_waits = False
        """Whether a wait of the host raises, as it does while a graph is captured."""
        self.graph: Graph | None = None
        self._capturing_thread = 0
        self._pace = Pace(schedule, seed)
        self._local = threading.local()
        self._streams: list[Stream] = []
        Stream.machine = self
        self._default = Stream(is_default=True)

    @property
    def is_eager(self) -> bool:
        """Whether work that this thread enqueues now is done at once."""
        return self._pace.schedule == "eager" and not self.is_capturing

    @property
    def is_capturing(self) -> bool:
        """Whether this thread captures a graph."""
        return self.graph is not None and self._capturing_thread == threading.get_ident()

    def add_stream(self, stream: Stream) -> None:
        """Called by a new stream."""
        with self.lock:
            self._streams.append(stream)
            self.num_streams_made += 1

    def current_stream(self) -> Stream:
        """This thread's stream."""
        return getattr(self._local, "stream", self._default)

    @contextmanager
    def use_stream(self, stream: Stream) -> Iterator[None]:
        """Makes a stream this thread's within a `with` block."""
        before = self.current_stream()
        self._local.stream = stream
        try:
            yield
        finally:
            self._local.stream = before

    def go_on(self) -> None:
        """Lets the device do some of what is enqueued."""
        self._pace.go_on(self._streams)

    def wait(self, why: str) -> None:
        """Notes that the host waits for the device."""
        where = self.counts.add_wait(why)
        if self.forbids_waits or self.is_capturing:
            raise AssertionError(f"the host waits for the device: {where}")

    def synchronize(self) -> None:
        """Does everything that is enqueued."""
        with self.lock:
            for stream in list(self._streams):
                stream.advance_to_end()

    def begin_capture(self, graph: Graph) -> None:
        """Puts what this thread enqueues into a graph."""
        assert self.graph is None, "two graphs are captured at once"
        self.graph, self._capturing_thread = graph, threading.get_ident()

    def end_capture(self, graph: Graph) -> None:
        """Ends `begin_capture`."""
        assert self.graph is graph, "the capture of this graph was not begun"
        self.graph = None

    def captures(self, work: Work | Point) -> bool:
        """Takes work into the graph that this thread captures. Returns False if it captures none."""
        if not self.is_capturing:
            return False
        assert self.graph is not None
        assert not isinstance(work, Point), "a graph that is captured waits for another stream"
        self.graph.work.append(work)
        return True


MACHINE = Machine()
"""The only one: torch.cuda is the process's, too."""
