"""On the imitated device, however late or early it works, every route gives the tokens of transformers.

`make imitated-cuda` does the same for every route with every schedule, and for all families.
"""

import pytest

from tests.support.imitated_cuda import Schedule
from tests.support.imitated_routes import ROUTES, Case, is_right

CHOSEN: list[tuple[Schedule, str]] = [
    *(("late", name) for name in ROUTES),
    ("random", "prefetched"),
    ("random", "remote and streamed"),
    ("copies first", "streamed experts stay"),
    ("compute first", "remote and streamed"),
]


@pytest.mark.parametrize(("schedule", "name"), CHOSEN)
def test_a_route_is_right_however_late_the_device_is(mixtral: Case, schedule: Schedule, name: str) -> None:
    assert is_right(mixtral, schedule, name, seed=3)
