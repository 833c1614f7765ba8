"""The tokens are those of transformers by every route: resident, streamed, remote, mixed, changing meanwhile."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from fiddler.checkpoint import Checkpoint
from gpu_service.cpu_experts.in_process import InProcessExperts
from gpu_service.gpu_experts.expert_slots import ExpertSlots
from gpu_service.model_runner.forward_input import Logits
from gpu_service.model_runner.model import Model
from gpu_service.moe.dispatcher import Dispatcher
from gpu_service.moe.prefetch import Prefetcher
from tests.support import checkpoints, reference
from tests.support.routes import FAST, MIXED, SLOW, Route, use_route

CPU = torch.device("cpu")
PROMPT = [7] * 17 + [30, 31]
NUM_TOKENS = 24
FAMILIES = (*checkpoints.FAMILIES, "qwen2_moe")
"""The last calls its shared experts before its routed ones; deepseek_v2 after."""


@dataclass(frozen=True)
class Way:
    """A route through the planner, and what shows that it was taken."""

    route: Route
    capacity: int
    expected: frozenset[str]
    """The routes by which some experts must have been computed."""
    prefetch: bool = False


def _way(cpu: float, transfer: float, policy: str, capacity: int, *expected: str, prefetch: bool = False) -> Way:
    return Way(Route(cpu, transfer, policy), capacity, frozenset(expected), prefetch)


WAYS = {
    "all remote": _way(FAST, SLOW, "none", 0, "remote"),
    "all streamed": _way(SLOW, FAST, "none", 0, "streamed"),
    "all resident": _way(SLOW, FAST, "layers", 10_000, "resident"),
    "some resident, others remote": _way(FAST, SLOW, "layers", 9, "resident", "remote"),
    "some resident, others streamed": _way(SLOW, FAST, "layers", 9, "resident", "streamed"),
    "remote and streamed": _way(FAST, FAST, "none", 0, "remote", "streamed"),
    "streamed experts stay": _way(SLOW, FAST, "lru", 9, "resident", "streamed"),
    "swapped in the background": _way(SLOW, 1e-3, "adaptive", 9, "resident", "streamed"),
    "prefetched": _way(SLOW, FAST, "lru", 3, "resident", "streamed", prefetch=True),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """With such small matrices, threads would only wait for each other."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write(request.param, tmp_path_factory.mktemp(request.param), eos_token_id=None)


@pytest.fixture(scope="module")
def expected(family: Path) -> tuple[list[int], torch.Tensor]:
    return reference.generate(reference.load(family), PROMPT, NUM_TOKENS)


@pytest.fixture(scope="module")
def model(family: Path) -> Model:
    checkpoint = Checkpoint.open(family)
    return Model(
        checkpoint,
        Dispatcher(checkpoint, CPU, InProcessExperts(checkpoint)),
        device=CPU,
        dtype=torch.float32,
        num_rows=2,
        max_context=128,
    )


@contextmanager
def _slots_of(model: Model, family: Path, way: Way) -> Iterator[ExpertSlots]:
    """Makes the model's experts take a route."""
    checkpoint = Checkpoint.open(family)
    num_experts = sum(layer.num_experts for layer in checkpoint.layers)
    slots = ExpertSlots(checkpoint, CPU, min(way.capacity, num_experts))
    prefetcher = Prefetcher(model.routers, slots, always=True) if way.prefetch else None
    use_route(model.dispatcher, checkpoint, slots, way.route, prefetcher=prefetcher)
    model.dispatcher.selections.clear()
    try:
        yield slots
    finally:
        slots.close()


def _greedy(
    model: Model, prompt: Sequence[int], between: Callable[[], object] = lambda: None
) -> tuple[list[int], torch.Tensor]:
    """Returns greedy tokens and the logits [tokens, vocab] that they were chosen by."""
    tokens, all_logits, position = list(prompt), [], 0
    with torch.inference_mode():
        for _ in range(NUM_TOKENS):
            new = torch.tensor([tokens[position:]])
            logits = model.forward(new, torch.arange(position, len(tokens))[None], first_row=0, wants=Logits.LAST)
            position = len(tokens)
            tokens.append(int(logits[0].argmax()))
            all_logits.append(logits[0].clone())
            between()
    return tokens[len(prompt) :], torch.stack(all_logits)


@pytest.mark.parametrize("name", WAYS)
def test_tokens_are_the_same_by_every_route(
    family: Path, model: Model, expected: tuple[list[int], torch.Tensor], name: str
) -> None:
    way, selections = WAYS[name], model.dispatcher.selections
    with _slots_of(model, family, way):
        tokens, logits = _greedy(model, PROMPT)
    assert tokens == expected[0]
    assert (logits - expected[1]).abs().max() < 1e-4
    totals = selections.read_routes()
    assert {route for layer in totals for route, total in layer.items() if total} >= way.expected
    assert [sum(layer.values()) for layer in totals] == [sum(counts) for counts in selections.read()]


def test_tokens_are_the_same_while_residency_changes(
    family: Path, model: Model, expected: tuple[list[int], torch.Tensor]
) -> None:
    """After every step other experts are resident, or on their way."""
    num_swaps = 0
    with _slots_of(model, family, Way(MIXED, 5, frozenset())) as slots:

        def swap_some() -> None:
            nonlocal num_swaps
            for step, evict in enumerate(list(slots.resident_keys())[:2]):
                load = ((evict[0] + 1) % 2, (evict[1] * 3 + num_swaps + step) % 6)
                num_swaps += slots.swap(evict, load)

        tokens, logits = _greedy(model, PROMPT, swap_some)
    assert tokens == expected[0]
    assert (logits - expected[1]).abs().max() < 1e-4
    assert num_swaps > NUM_TOKENS // 2


def test_a_device_that_runs_out_of_memory_gives_up_slots_and_goes_on(
    family: Path, model: Model, expected: tuple[list[int], torch.Tensor]
) -> None:
    with _slots_of(model, family, _way(SLOW, FAST, "layers", 8)) as slots:
        tokens, _ = _greedy(model, PROMPT, model.dispatcher.make_room)
        assert slots.capacity == 0
        assert not model.dispatcher.make_room()
    assert tokens == expected[0]
