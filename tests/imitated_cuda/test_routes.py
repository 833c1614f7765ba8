"""On the imitated device, however late or early it works, every route gives the tokens of transformers.

`make imitated-cuda` does the same for every route with every schedule, and for all families.
"""

import pytest
import torch

from fiddler.checkpoint import Checkpoint
from gpu_service.cpu_experts.in_process import InProcessExperts
from tests.support.imitated_cuda import DEVICE, Schedule, imitated_cuda
from tests.support.imitated_routes import PROMPT, ROUTES, Case, is_right
from tests.support.in_place import compute_in_place
from tests.support.routes import greedy, model_of

CHOSEN: list[tuple[Schedule, str]] = [
    *(("late", name) for name in ROUTES),
    ("random", "prefetched"),
    ("random", "remote and streamed"),
    ("copies first", "streamed experts stay"),
    ("compute first", "remote and streamed"),
]

ROUTES_OF_RESIDENT = ("all resident", "some resident, others streamed", "streamed experts stay", "changing")


@pytest.mark.parametrize(("schedule", "name"), CHOSEN)
def test_a_route_is_right_however_late_the_device_is(mixtral: Case, schedule: Schedule, name: str) -> None:
    assert is_right(mixtral, schedule, name, seed=3)


@pytest.mark.parametrize(("schedule", "name"), [("late", "changing"), ("random", "streamed experts stay")])
def test_a_route_of_experts_in_place_is_right(
    mixtral: Case, schedule: Schedule, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute_in_place(monkeypatch)
    assert is_right(mixtral, schedule, name, seed=3)


@pytest.mark.parametrize("schedule", ["late", "random"])
def test_experts_are_counted_right_where_the_device_holds_none(mixtral: Case, schedule: Schedule) -> None:
    """They are counted after the step, when the next layer's ids lie where a layer's were copied to."""
    counts = []
    for device in (DEVICE, torch.device("cpu")):
        with imitated_cuda(schedule, seed=3):
            remote = InProcessExperts(Checkpoint.open(mixtral.directory))
            model = model_of(mixtral.directory, device=device, remote=remote)
            model.dispatcher.clear_counts()
            tokens, _ = greedy(model, PROMPT, len(mixtral.expected[0]))
            assert tokens == mixtral.expected[0]
            counts.append((model.dispatcher.selections.read(), model.dispatcher.selections.read_routes()))
    assert counts[0] == counts[1]
    assert len({tuple(layer) for layer in counts[0][0]}) > 1, "layers that choose alike would show nothing"
