"""Runs one strategy through one workload and sums up its time."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.orchestration.costs import System
from benchmarks.orchestration.strategies.server import Server
from benchmarks.orchestration.workloads import Request, Workload
from gpu_service.placement.popularity import Popularity


@dataclass(frozen=True)
class Result:
    """A strategy's result for a workload, without the warm-up."""

    strategy: str
    tokens_per_second: list[float]
    """By request."""
    first_token_seconds: float
    """Median of the prompts."""
    hit_rate: float
    """Share of the chosen experts that were resident on the GPU."""
    pcie_bytes_per_token: float
    """Weights, in both directions."""
    tokens: int
    """Of all requests, as in the rates."""
    seconds: float
    """The seconds in the rates: those of the prompts if only prompts are computed, otherwise of the decode steps."""
    spent: dict[str, float]
    """The same seconds by what was waited for."""

    @property
    def rate(self) -> float:
        """Tokens per second, the median."""
        return statistics.median(self.tokens_per_second)


def run(
    kind: type[Server], system: System, popularity: Popularity, *, workload: Workload, requests: Sequence[Request]
) -> Result:
    """Serves all requests in turn."""
    server = kind(system, popularity)
    warm_up, *counted = requests
    _serve(server, warm_up, workload.is_prompt)
    server.calls = server.hits = 0
    parts = [_serve(server, request, workload.is_prompt) for request in counted]
    spent: dict[str, float] = defaultdict(float)
    for part in parts:
        for what, seconds in part.spent.items():
            spent[what] += seconds
    return Result(
        strategy=kind.name,
        tokens_per_second=[part.tokens / part.seconds for part in parts],
        first_token_seconds=statistics.median(part.first_token_seconds for part in parts),
        hit_rate=sum(part.hits for part in parts) / max(1, sum(part.calls for part in parts)),
        pcie_bytes_per_token=sum(part.moved_bytes for part in parts) / sum(part.tokens for part in parts),
        tokens=sum(part.tokens for part in parts),
        seconds=sum(part.seconds for part in parts),
        spent=dict(spent),
    )


@dataclass(frozen=True)
class _Served:
    """One request: the seconds of its prompt, and the account of what is in the rates."""

    first_token_seconds: float
    seconds: float
    tokens: int
    hits: int
    calls: int
    moved_bytes: float
    spent: dict[str, float]


def _serve(server: Server, request: Request, is_prompt: bool) -> _Served:
    began = server.now
    before = _account(server)
    server.prompt(request.prompt)
    first_token_seconds = server.now - began
    tokens = request.prompt.rows
    if not is_prompt:
        began, before, tokens = server.now, _account(server), 0
        for number, batch in enumerate(request.steps, 1):
            server.decode(batch, context=request.prompt.rows + number)
            tokens += batch.rows
    spent, (hits, calls, moved) = _account(server)
    earlier, (hits_before, calls_before, moved_before) = before
    return _Served(
        first_token_seconds,
        server.now - began,
        tokens,
        hits - hits_before,
        calls - calls_before,
        moved - moved_before,
        {what: seconds - earlier.get(what, 0.0) for what, seconds in spent.items()},
    )


def _account(server: Server) -> tuple[dict[str, float], tuple[int, int, float]]:
    server.link.advance(server.now)
    return dict(server.spent), (server.hits, server.calls, server.link.copied_bytes + server.written_bytes)
