"""On the imitated device, however late or early it works, every route gives the tokens of transformers.

`make imitated-cuda` does the same for every route with every schedule, and for all families.
"""

import pytest

from tests.support.imitated_cuda import Schedule
from tests.support.imitated_routes import ROUTES, Case, is_right
from tests.support.in_place import compute_in_place

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
