"""The tokens are those of transformers by every route: resident, streamed, remote, mixed, changing meanwhile."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gpu_service.model_runner.model import Model
from tests.support import checkpoints, reference
from tests.support.routes import FAST, MIXED, SLOW, WAYS, Way, greedy, model_of, slots_of, way_of

CPU = torch.device("cpu")
PROMPT = [7] * 17 + [30, 31]
NUM_TOKENS = 24
FAMILIES = (*checkpoints.FAMILIES, "qwen2_moe")
"""The last calls its shared experts before its routed ones; deepseek_v2 after."""


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
    return model_of(family)


@pytest.mark.parametrize("name", WAYS)
def test_tokens_are_the_same_by_every_route(
    family: Path, model: Model, expected: tuple[list[int], torch.Tensor], name: str
) -> None:
    way, selections = WAYS[name], model.dispatcher.selections
    with slots_of(model, family, way):
        tokens, logits = greedy(model, PROMPT, NUM_TOKENS)
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
    with slots_of(model, family, Way(MIXED, 5, frozenset())) as slots:

        def swap_some() -> None:
            nonlocal num_swaps
            for step, evict in enumerate(list(slots.resident_keys())[:2]):
                load = ((evict[0] + 1) % 2, (evict[1] * 3 + num_swaps + step) % 6)
                num_swaps += slots.swap(evict, load)

        tokens, logits = greedy(model, PROMPT, NUM_TOKENS, swap_some)
    assert tokens == expected[0]
    assert (logits - expected[1]).abs().max() < 1e-4
    assert num_swaps > NUM_TOKENS // 2


def test_a_device_that_runs_out_of_memory_gives_up_slots_and_goes_on(
    family: Path, model: Model, expected: tuple[list[int], torch.Tensor]
) -> None:
    with slots_of(model, family, way_of(SLOW, FAST, "layers", 8)) as slots:
        tokens, _ = greedy(model, PROMPT, NUM_TOKENS, model.dispatcher.make_room)
        assert slots.capacity == 0
        assert not model.dispatcher.make_room()
    assert tokens == expected[0]
