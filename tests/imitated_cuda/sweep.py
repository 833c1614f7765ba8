"""`make imitated-cuda`: every route and every fault with every schedule, every allocation, and every family.

The files beside this one are the selection that `make test` runs.
"""

import pytest
import torch

from gpu_service.models.families import SWEPT
from gpu_service.models.registry import architecture_of
from tests.imitated_cuda.test_faults import FAULTS, notices
from tests.imitated_cuda.test_out_of_memory import Subject, check
from tests.imitated_cuda.test_out_of_memory import subject as subject
from tests.imitated_cuda.test_routes import ROUTES_OF_RESIDENT
from tests.support import reference
from tests.support.families import published
from tests.support.imitated_cuda import DEVICE, SCHEDULES, Schedule, imitated_cuda
from tests.support.imitated_routes import MIX, PROMPT, ROUTES, Case, is_right, swapping
from tests.support.in_place import compute_in_place
from tests.support.routes import greedy, model_of, slots_of

NUM_TOKENS = 4
TOLERANCE = 5e-5
"""Largest difference of a logit, in units of the largest logit."""
_HIDDEN_WHEN_EAGER = {
    "a copy is released before its reader is enqueued": False,
    "a tensor is on the wrong device": False,
}
"""Faults that a device which does everything at once shows as well; it hides the others."""


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ROUTES)
def test_a_route_is_right(mixtral: Case, schedule: Schedule, name: str) -> None:
    assert is_right(mixtral, schedule, name, seed=5)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ROUTES_OF_RESIDENT)
def test_a_route_of_experts_in_place_is_right(
    mixtral: Case, schedule: Schedule, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute_in_place(monkeypatch)
    assert is_right(mixtral, schedule, name, seed=5)


@pytest.mark.parametrize("fault", FAULTS)
def test_some_schedule_notices_a_fault(mixtral: Case, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    noticed = []
    for schedule in SCHEDULES:
        with monkeypatch.context() as patch:
            if notices(mixtral, schedule, fault, patch):
                noticed.append(schedule)
    assert "late" in noticed
    assert ("eager" not in noticed) is _HIDDEN_WHEN_EAGER.get(fault, True), noticed


def test_a_batch_whose_memory_runs_out_anywhere(subject: Subject) -> None:
    for allocation in range(subject.num_allocations):
        check(subject, allocation)


@pytest.fixture(scope="module", params=sorted(SWEPT))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    directory, plain = published.write(request.param, tmp_path_factory.mktemp(request.param))
    model = architecture_of(request.param).auto_class.from_pretrained(plain, dtype=torch.float32).eval()
    return Case(directory, reference.generate(model, PROMPT, NUM_TOKENS))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_family_is_right_by_mixed_routes(family: Case, schedule: Schedule) -> None:
    expected, expected_logits = family.expected
    with imitated_cuda(schedule, seed=7):
        model = model_of(family.directory, device=DEVICE, uses_graphs=True)
        with slots_of(model, family.directory, MIX) as slots:
            tokens, logits = greedy(model, PROMPT, NUM_TOKENS, swapping(model, slots))
    assert tokens == expected
    assert (logits - expected_logits).abs().max() < TOLERANCE * expected_logits.abs().max()
