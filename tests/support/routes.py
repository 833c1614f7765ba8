"""Costs and policies with which the planner sends experts along a given route."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from typing_extensions import override

from fiddler.checkpoint import Checkpoint
from fiddler.convert.recipe import DenseFormat
from gpu_service.cpu_experts.backend import RemoteExperts
from gpu_service.cpu_experts.in_process import InProcessExperts
from gpu_service.errors import ExpertServiceError
from gpu_service.gpu_experts.expert_slots import ExpertSlots
from gpu_service.model_runner.forward_input import Logits
from gpu_service.model_runner.model import Model
from gpu_service.moe.dispatcher import Dispatcher
from gpu_service.moe.orchestrated import Orchestrated
from gpu_service.moe.prefetch import Prefetcher
from gpu_service.placement import policies
from gpu_service.planning.latency_model import LatencyModel, Measurements

Continuation = tuple[list[int], torch.Tensor]
"""Tokens, and the logits [tokens, vocab] that they were chosen by."""

CPU = torch.device("cpu")
FAST, SLOW = 1e-6, 1.0
MAX_ROWS = 1024
"""Rows for which costs are known."""


@dataclass(frozen=True)
class Route:
    """Seconds of an expert on the CPU and of its copy, and the policy that decides which are resident."""

    cpu_seconds: float
    transfer_seconds: float
    policy: str = "none"


MIXED = Route(FAST, FAST, "layers")


def use_route(
    dispatcher: Dispatcher,
    checkpoint: Checkpoint,
    slots: ExpertSlots,
    route: Route,
    *,
    prefetcher: Prefetcher | None = None,
    max_rows: int = MAX_ROWS,
) -> None:
    """Makes a dispatcher plan with these costs, known up to so many rows, and fills the slots as the policy decides."""
    measured = Measurements(
        expert_bytes=1,
        cpu=((1, route.cpu_seconds),),
        hop=((1, 1e-9),),
        gpu=((1, 1e-9),),
        transfer=(route.transfer_seconds,),
    )
    num_experts = [layer.num_experts for layer in checkpoint.layers]
    latency = LatencyModel(measured, [1] * len(num_experts), max_rows)
    inputs = policies.Inputs(
        num_experts=num_experts, capacity=slots.capacity, popularity=None, costs=lambda: latency.costs(0)
    )
    policy = policies.build(route.policy, inputs)
    slots.load(policy.initial())
    dispatcher.use(
        Orchestrated(
            latency=latency,
            slots=slots,
            placement=policy,
            prefetcher=prefetcher or Prefetcher({}, slots, always=False),
            timeout_cap_seconds=60.0,
        )
    )


@dataclass(frozen=True)
class Way:
    """A route through the planner, and what shows that it was taken."""

    route: Route
    capacity: int
    expected: frozenset[str]
    """The routes by which some experts must have been computed."""
    prefetch: bool = False


def way_of(cpu: float, transfer: float, policy: str, capacity: int, *expected: str, prefetch: bool = False) -> Way:
    return Way(Route(cpu, transfer, policy), capacity, frozenset(expected), prefetch)


WAYS = {
    "all remote": way_of(FAST, SLOW, "none", 0, "remote"),
    "all streamed": way_of(SLOW, FAST, "none", 0, "streamed"),
    "all resident": way_of(SLOW, FAST, "layers", 10_000, "resident"),
    "some resident, others remote": way_of(FAST, SLOW, "layers", 9, "resident", "remote"),
    "some resident, others streamed": way_of(SLOW, FAST, "layers", 9, "resident", "streamed"),
    "remote and streamed": way_of(FAST, FAST, "none", 0, "remote", "streamed"),
    "streamed experts stay": way_of(SLOW, FAST, "lru", 9, "resident", "streamed"),
    "swapped in the background": way_of(SLOW, 1e-3, "adaptive", 9, "resident", "streamed"),
    "prefetched": way_of(SLOW, FAST, "lru", 3, "resident", "streamed", prefetch=True),
}


def model_of(
    directory: Path,
    max_context: int = 128,
    *,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    remote: RemoteExperts | None = None,
    uses_graphs: bool = False,
    dense_format: DenseFormat = "auto",
) -> Model:
    """A checkpoint's model, whose experts are computed remotely until a way is set: in this process by default."""
    checkpoint = Checkpoint.open(directory)
    return Model(
        checkpoint,
        Dispatcher(checkpoint, device, remote or InProcessExperts(checkpoint)),
        device=device,
        dtype=dtype,
        num_rows=2,
        max_context=max_context,
        uses_graphs=uses_graphs,
        dense_format=dense_format,
    )


def check_way(directory: Path, model: Model, way: Way, prompt: Sequence[int], expected: Continuation) -> None:
    """Checks that a checkpoint's experts take a way, and that greedy tokens and logits are those that are expected."""
    with slots_of(model, directory, way):
        tokens, logits = greedy(model, prompt, len(expected[0]))
    assert tokens == expected[0]
    assert (logits - expected[1]).abs().max() < 1e-4
    routes = model.dispatcher.selections.read_routes()
    assert {route for layer in routes for route, total in layer.items() if total} >= way.expected


class FailingExperts(InProcessExperts):
    """Fails a call once it is told to, and is lost from then on, as a service that is killed."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.fails = False

    @override
    def submit(
        self,
        layer: int,
        hidden: torch.Tensor,
        *,
        expert_ids: torch.Tensor,
        routing_weights: torch.Tensor,
        timeout_seconds: float | None = None,
    ) -> Any:
        if self.fails:
            self.available = False
            raise ExpertServiceError("killed")
        return super().submit(layer, hidden, expert_ids=expert_ids, routing_weights=routing_weights)


def check_loss(directory: Path, prompt: Sequence[int], expected: Continuation) -> None:
    """Checks the same where all is remote until that is lost, in the middle of the tokens."""
    experts = FailingExperts(Checkpoint.open(directory))
    model = model_of(directory, remote=experts)
    num_tokens, computed = len(expected[0]), 0

    def fail_in_the_middle() -> None:
        nonlocal computed
        computed += 1
        experts.fails = computed >= num_tokens // 2

    with slots_of(model, directory, WAYS["all remote"]):
        tokens, logits = greedy(model, prompt, num_tokens, fail_in_the_middle)
        routes = model.dispatcher.selections.read_routes()
    assert tokens == expected[0]
    assert (logits - expected[1]).abs().max() < 1e-4
    assert not experts.available
    assert {route for layer in routes for route, total in layer.items() if total} >= {"remote", "streamed"}


@contextmanager
def slots_of(model: Model, directory: Path, way: Way) -> Iterator[ExpertSlots]:
    """Makes the model's experts take a route."""
    checkpoint = Checkpoint.open(directory)
    num_experts = sum(layer.num_experts for layer in checkpoint.layers)
    slots = ExpertSlots(checkpoint, model.device, min(way.capacity, num_experts))
    prefetcher = Prefetcher(model.routers, slots, always=True) if way.prefetch else None
    use_route(model.dispatcher, checkpoint, slots, way.route, prefetcher=prefetcher)
    model.dispatcher.selections.clear()
    try:
        yield slots
    finally:
        slots.close()


def greedy(
    model: Model, prompt: Sequence[int], num_tokens: int, between: Callable[[], object] = lambda: None
) -> tuple[list[int], torch.Tensor]:
    """Returns greedy tokens and the logits [tokens, vocab] that they were chosen by."""
    tokens, all_logits, position = list(prompt), [], 0
    with torch.inference_mode():
        for _ in range(num_tokens):
            new = torch.tensor([tokens[position:]])
            (logits,) = model.forward(new, torch.arange(position, len(tokens))[None], first_row=0, wants=Logits.LAST)
            position = len(tokens)
            tokens.append(int(logits.argmax()))
            all_logits.append(logits.cpu().clone())
            between()
    return tokens[len(prompt) :], torch.stack(all_logits)
