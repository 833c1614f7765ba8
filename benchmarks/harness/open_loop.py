"""Callers that arrive whether or not earlier ones were served: an open loop with Poisson arrivals, and a closed one."""

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

_Outcome = TypeVar("_Outcome")


async def open_loop(
    call: Callable[[int], Coroutine[Any, Any, _Outcome]],
    *,
    per_second: float,
    seconds: float,
    chance: random.Random,
    most_under_way: int | None = None,
) -> list[_Outcome]:
    """Starts calls at random moments and waits for the end of the last one.

    Args:
        call: Makes the call of that number, which must not raise.
        per_second: The mean rate of arrivals.
        seconds: For how long calls start.
        chance: Draws the moments.
        most_under_way: How many calls may be under way; those that would be too many do not start. None: any number.
    """
    calls: list[asyncio.Task[_Outcome]] = []
    under_way: set[asyncio.Task[_Outcome]] = set()
    began = arrival = time.monotonic()
    while (arrival := arrival + chance.expovariate(per_second)) < began + seconds:
        await asyncio.sleep(max(0.0, arrival - time.monotonic()))
        if most_under_way is not None and len(under_way) >= most_under_way:
            continue
        task = asyncio.create_task(call(len(calls)))
        calls.append(task)
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    return await asyncio.gather(*calls)


async def closed_loop(
    call: Callable[[int], Coroutine[Any, Any, _Outcome]], *, callers: int, seconds: float
) -> tuple[list[_Outcome], float]:
    """Runs callers of which each makes one call after the other.

    Returns:
        What the calls returned, and the seconds that all of them took together.
    """
    began = time.monotonic()
    outcomes: list[_Outcome] = []

    async def repeat() -> None:
        while time.monotonic() < began + seconds:
            outcomes.append(await call(len(outcomes)))

    await asyncio.gather(*(repeat() for _ in range(callers)))
    return outcomes, time.monotonic() - began
