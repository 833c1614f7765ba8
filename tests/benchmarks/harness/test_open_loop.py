"""An open loop starts calls however long earlier ones take; a closed one has a fixed number under way."""

import asyncio
import random

from benchmarks.harness.open_loop import closed_loop, open_loop


async def test_an_open_loop_waits_for_no_call_before_the_next() -> None:
    under_way = most = 0

    async def call(number: int) -> int:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.5)
        under_way -= 1
        return number

    numbers = await open_loop(call, per_second=200, seconds=0.2, chance=random.Random(0))
    assert numbers == list(range(len(numbers)))
    assert 15 < len(numbers) < 80, "40 are expected"
    assert most == len(numbers)


async def test_an_open_loop_may_have_a_bound_beyond_which_callers_do_not_come() -> None:
    async def call(number: int) -> int:
        await asyncio.sleep(0.5)
        return number

    assert await open_loop(call, per_second=200, seconds=0.2, chance=random.Random(0), most_under_way=3) == [0, 1, 2]


async def test_a_closed_loop_has_as_many_calls_under_way_as_callers() -> None:
    under_way = 0

    async def call(number: int) -> int:
        nonlocal under_way
        under_way += 1
        seen = under_way
        await asyncio.sleep(0.01)
        under_way -= 1
        return seen

    seen, seconds = await closed_loop(call, callers=4, seconds=0.1)
    assert max(seen) == 4
    assert len(seen) > 4
    assert seconds >= 0.1
