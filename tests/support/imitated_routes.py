"""A tiny model on the imitated device, its routes, and what shows that they are right."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from fiddler.checkpoint import Checkpoint
from gpu_service.cpu_experts.backend import PendingOutput
from gpu_service.cpu_experts.in_process import InProcessExperts
from gpu_service.errors import ExpertServiceError
from gpu_service.gpu_experts.expert_slots import ExpertSlots
from gpu_service.model_runner.model import Model
from tests.support import checkpoints, reference
from tests.support.imitated_cuda import DEVICE, Schedule, imitated_cuda
from tests.support.routes import FAST, MIXED, SLOW, WAYS, Continuation, Way, greedy, model_of, slots_of, way_of

PROMPT = [7] * 17 + [30, 31]
TOLERANCE = 1e-4
MIX = Way(MIXED, 9, frozenset({"resident", "remote"}))
"""Some experts are resident, and of the others some are computed by the CPU and some streamed."""
ROUTES = {**WAYS, "changing": Way(MIXED, 5, frozenset()), "lost": way_of(FAST, FAST, "layers", 5)}
"""Those of tests/support/routes.py, residency that changes between all steps, and a CPU service that is lost."""


@dataclass(frozen=True)
class Case:
    """A checkpoint, and what transformers generates with it after PROMPT."""

    directory: Path
    expected: Continuation


def case_of(family: str, directory: Path, num_tokens: int) -> Case:
    """Writes a tiny checkpoint of a family."""
    checkpoints.write(family, directory, eos_token_id=None)
    return Case(directory, reference.generate(reference.load(directory), PROMPT, num_tokens))


class LostExperts:
    """The CPU expert service, which is lost at its so many-th message: no answer comes, nor to any later one."""

    available = True

    def __init__(self, checkpoint: Checkpoint, num_messages: int) -> None:
        self._experts = InProcessExperts(checkpoint)
        self._left = num_messages

    def submit(
        self,
        layer: int,
        hidden: torch.Tensor,
        *,
        expert_ids: torch.Tensor,
        routing_weights: torch.Tensor,
        timeout_seconds: float | None = None,
    ) -> PendingOutput:
        self._left -= 1
        if self._left < 0:
            return _Lost(self)
        return self._experts.submit(layer, hidden, expert_ids=expert_ids, routing_weights=routing_weights)


class _Lost:
    compute_seconds = None

    def __init__(self, service: LostExperts) -> None:
        self._service = service

    def join(self) -> torch.Tensor:
        self._service.available = False
        raise ExpertServiceError("lost")


def is_right(case: Case, schedule: Schedule, name: str, *, seed: int = 0) -> bool:
    """Whether a route gives the tokens of transformers on the imitated device, and logits that are near theirs."""
    num_messages = 4 if name == "lost" else 10**9
    with imitated_cuda(schedule, seed=seed):
        remote = LostExperts(Checkpoint.open(case.directory), num_messages)
        model = model_of(case.directory, device=DEVICE, remote=remote)
        return route_is_right(case, model, ROUTES[name], swaps=name == "changing")


def route_is_right(case: Case, model: Model, way: Way, *, swaps: bool = False) -> bool:
    """The same of a model, which takes a route."""
    expected, logits_expected = case.expected
    with slots_of(model, case.directory, way) as slots:
        between = swapping(model, slots) if swaps else lambda: None
        tokens, logits = greedy(model, PROMPT, len(expected), between)
    taken = {route for layer in model.dispatcher.selections.read_routes() for route, total in layer.items() if total}
    assert taken >= way.expected, f"experts were computed {taken} only"
    return tokens == expected and bool((logits - logits_expected).abs().max() < TOLERANCE)


def swapping(model: Model, slots: ExpertSlots) -> Callable[[], None]:
    """What makes two other experts resident, each time that it is called."""
    num_layers = len(model.dispatcher.selections.read())
    state = {"calls": 0}

    def swap() -> None:
        for number, evict in enumerate(list(slots.resident_keys())[:2]):
            state["calls"] += 1
            slots.swap(evict, ((evict[0] + 1) % num_layers, (evict[1] * 3 + state["calls"] + number) % 6))

    return swap


@contextmanager
def few_threads() -> Iterator[None]:
    """One thread of PyTorch's: with such small matrices, more would only wait for each other."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


__all__ = ["FAST", "MIX", "PROMPT", "ROUTES", "SLOW", "Case", "case_of", "is_right"]
