"""Shared by all strategies: a forward in virtual time, layer by layer, and an account of its time."""

from abc import ABC, abstractmethod
from collections import defaultdict

from benchmarks.orchestration.batches import Batch, Routed
from benchmarks.orchestration.costs import System
from benchmarks.orchestration.link import Link
from gpu_service.gpu_experts.keys import ExpertKey
from gpu_service.placement.popularity import Popularity


class Server(ABC):
    """One model on one machine with one strategy. `now` is its clock, in seconds."""

    name: str
    prompt_chunk: int | None = None
    """The most rows of a prompt in one forward; None: all."""

    def __init__(self, system: System, popularity: Popularity) -> None:
        """Starts with its experts placed.

        Args:
            system: The model and the machine.
            popularity: Counted on other prompts; a strategy may ignore it.
        """
        self.system = system
        self.popularity = popularity
        self.link = Link(system.machine.pcie_bytes_per_second)
        self.now = 0.0
        self.spent: defaultdict[str, float] = defaultdict(float)
        """Seconds by what the server waited for: attention, host, hop, cpu, copies, gpu."""
        self.calls = 0
        """Chosen experts, counted once for each layer and step."""
        self.hits = 0
        """Chosen experts that were resident on the GPU."""
        self.written_bytes = 0.0
        """Bytes copied from the GPU to the host, without hidden rows."""

    def prompt(self, prompt: Batch) -> None:
        """Computes a prompt."""
        context = 0
        for batch in prompt.split(self.prompt_chunk or prompt.rows):
            context += batch.rows
            self._forward(batch, context, sequences=1 if context == prompt.rows else 0)

    def decode(self, batch: Batch, context: int) -> None:
        """Computes one token for each row, which attends to `context` tokens."""
        self._forward(batch, context, sequences=batch.rows)

    def _forward(self, batch: Batch, context: int, sequences: int) -> None:
        model, rows = self.system.model, batch.rows
        self.begin_step()
        seconds = self.attention_seconds(rows, context)
        for _ in range(model.layers - model.moe_layers):
            self.attend(seconds)
        for layer, routed in enumerate(batch.layers):
            self.attend(seconds)
            self.calls += len(routed.active)
            self.experts(layer, routed)
        self.wait("attention", self.system.ends_seconds(rows, sequences))
        self.end_step()

    def begin_step(self) -> None:  # noqa: B027  most strategies need none
        """Called before a forward."""

    def end_step(self) -> None:  # noqa: B027
        """Called after a forward."""

    def attention_seconds(self, rows: int, context: int) -> float:
        """Seconds of a layer without its experts."""
        return self.system.attention_seconds(rows, context)

    def attend(self, seconds: float) -> None:
        """Computes a layer without its experts."""
        self.wait("attention", seconds)

    @abstractmethod
    def experts(self, layer: int, routed: Routed) -> None:
        """Computes the experts of one layer and moves the clock."""

    def wait(self, what: str, seconds: float) -> None:
        """Moves the clock, and adds the seconds to the account."""
        self.spent[what] += seconds
        self.now += seconds

    def copy_and_wait(self, num_bytes: float) -> None:
        """Copies to the GPU while nothing else runs."""
        seconds = num_bytes / self.link.bytes_per_second
        self.link.occupy(self.now + seconds, num_bytes)
        self.wait("copies", seconds)


def most_popular(popularity: Popularity, slots: int) -> set[ExpertKey]:
    """The `slots` experts with the highest counts; ties in order of layer and expert."""
    counts = [
        (-count, (layer, expert)) for layer, row in enumerate(popularity.counts) for expert, count in enumerate(row)
    ]
    return {key for _, key in sorted(counts)[:slots]}
