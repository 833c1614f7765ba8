"""Requests as tests write them: most fields have a default, and what ends a generation is spelt field by field."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

from gpu_service.engine.events import Event
from gpu_service.engine.request import Request
from gpu_service.sampling.outputs import Ending
from gpu_service.sampling.parameters import SamplingParameters


def request_of(
    prompt: Sequence[int],
    max_tokens: int = 8,
    *,
    emit: Callable[[Event], None] = lambda event: None,
    sampling: SamplingParameters | None = None,
    eos_ids: Collection[int] = (),
    stop_ids: Collection[int] = (),
    min_tokens: int = 0,
    **more: Any,
) -> Request:
    """A request, greedy unless `sampling` is given, whose events are dropped unless `emit` is given."""
    ending = Ending(max_tokens, eos_ids=frozenset(eos_ids), stop_ids=frozenset(stop_ids), min_tokens=min_tokens)
    return Request(prompt=list(prompt), sampling=sampling or SamplingParameters(), ending=ending, emit=emit, **more)
