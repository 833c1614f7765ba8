"""The services of benchmarks.metrics: whatever counts can be switched off, however it is called, and on again."""

import inspect

import pytest
from prometheus_client import Counter, Histogram

from benchmarks.metrics import switched_service
from gpu_service.moe.counters import LayerCosts, SelectionCounts


class _Counts:
    def __init__(self) -> None:
        self.total = 0

    def add(self, number: int, *, times: int = 1) -> None:
        self.total += number * times


def test_a_function_that_is_switched_off_takes_any_arguments_and_counts_nothing() -> None:
    counts, switch = _Counts(), switched_service._Switch()
    switch.add(_Counts, "add")
    switch.flip(0, None)
    counts.add(2, times=3)
    assert counts.total == 0
    switch.flip(0, None)
    counts.add(2, times=3)
    assert counts.total == 6


@pytest.mark.parametrize("owner", [Counter, Histogram, LayerCosts, SelectionCounts])
def test_the_gpu_services_counting_functions_are_switched(owner: type) -> None:
    switch = switched_service._Switch()
    switched_service._add_gpu_service(switch)
    names = [name for of, name, _ in switch._functions if of is owner]
    assert names
    # called as they are, each could be replaced by what takes anything
    assert all(inspect.isfunction(getattr(owner, name)) for name in names)
