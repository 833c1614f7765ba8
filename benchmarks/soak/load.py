"""Sends requests in an open loop, some of which leave early, while the CPU expert service is killed now and then."""

import asyncio
import random
import signal
from collections import Counter
from dataclasses import dataclass, field

from benchmarks.harness.open_loop import closed_loop, open_loop
from benchmarks.soak.requests import Collector, Result, SoakRequest, requests
from client import AsyncClient, BusyError, ClientError, DeadlineError, GenerationCancelledError
from pair import Pair

_OUTCOMES = ("right", "wrong", "hung", "errors", "refused", "cancelled", "expired")
_SHARE_OF_CAPACITY = 0.5
_CANCELLED_SHARE, _EXPIRED_SHARE = 0.15, 0.1
_SHORT_SECONDS = (0.01, 2.0)
_PATIENCE_SECONDS = 300.0  # of every other request, however busy the machine is
_HUNG_SECONDS = 60.0  # after a request's time
_MOST_UNDER_WAY = 64
_CLOSED_CALLERS = 8
_CAPACITY_SHARE = 0.05  # of the run's time, for measuring the capacity
_MOST_CAPACITY_SECONDS = 15.0
_RESTART_SECONDS = 120.0
EXPERTS = "cpu_expert_service"


@dataclass
class Counts:
    """How requests ended."""

    by_outcome: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_OUTCOMES, 0))
    by_kind: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    """A line for each request that was wrong, hung or failed."""
    kills: int = 0


class Soak:
    """A pair's load. `run` is called once."""

    def __init__(self, pair: Pair, *, seed: int, kill_seconds: float) -> None:
        """Sends nothing yet.

        Args:
            pair: It serves.
            seed: Of the requests and of all moments.
            kill_seconds: The mean time between two kills of the CPU expert service.
        """
        self._pair = pair
        self._chance = random.Random(seed)
        self._seed = seed
        self._kill_seconds = kill_seconds
        self._expected: dict[SoakRequest, Result] = {}
        self._counts = Counts()
        self._client: AsyncClient

    async def run(self, seconds: float, settle_seconds: float) -> Counts:
        """Sends requests for a time, and waits for the last one; then is idle for a while, as the watch looks on."""
        async with AsyncClient(self._pair.target) as self._client:
            info = await self._client.model_info()
            for request in requests(self._seed, info.has_chat_template):
                self._expected[request] = await self._read(request, _PATIENCE_SECONDS)
            measured = min(_MOST_CAPACITY_SECONDS, seconds * _CAPACITY_SHARE)
            made, took = await closed_loop(self._patient, callers=_CLOSED_CALLERS, seconds=measured)
            killing = asyncio.create_task(self._kill_now_and_then())
            try:
                await open_loop(
                    self._call,
                    per_second=_SHARE_OF_CAPACITY * len(made) / took,
                    seconds=seconds,
                    chance=self._chance,
                    most_under_way=_MOST_UNDER_WAY,
                )
            finally:
                killing.cancel()
                await asyncio.gather(killing, return_exceptions=True)
            await asyncio.to_thread(self._restore)
            await asyncio.sleep(settle_seconds)
        return self._counts

    async def _call(self, number: int) -> None:
        draw = self._chance.random()
        if draw < _CANCELLED_SHARE:
            await self._cancelled()
        elif draw < _CANCELLED_SHARE + _EXPIRED_SHARE:
            await self._send(self._any(), self._chance.uniform(*_SHORT_SECONDS), is_patient=False)
        else:
            await self._patient(number)

    async def _patient(self, number: int) -> None:
        await self._send(self._any(), _PATIENCE_SECONDS, is_patient=True)

    def _any(self) -> SoakRequest:
        return self._chance.choice(list(self._expected))

    async def _send(self, request: SoakRequest, timeout: float, *, is_patient: bool) -> None:
        """Sends a request, compares its result and counts it."""
        try:
            async with asyncio.timeout(timeout + _HUNG_SECONDS):
                result = await self._read(request, timeout)
        except TimeoutError:
            self._count("hung", request, f"not ended {_HUNG_SECONDS:g} s after its time")
        except BusyError:
            self._count("refused", request)
        except DeadlineError:
            outcome = "hung" if is_patient else "expired"
            self._count(outcome, request, f"not ended within {timeout:g} s" if is_patient else "")
        except ClientError as error:
            self._count("errors", request, f"{error.code.name}: {error}")
        else:
            is_right = result == self._expected[request]
            self._count(
                "right" if is_right else "wrong",
                request,
                "" if is_right else f"{result}, not {self._expected[request]}",
            )

    async def _cancelled(self) -> None:
        """Sends a request and leaves at a random moment, or reads it to the end if that comes first."""
        request = self._any()
        generation = request.send(self._client, _PATIENCE_SECONDS)
        leaving = asyncio.get_running_loop().call_later(self._chance.uniform(*_SHORT_SECONDS), generation.cancel)
        collector = Collector()
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS + _HUNG_SECONDS):
                async for event in generation:
                    collector.add(event)
        except GenerationCancelledError:
            self._count("cancelled", request)
        except TimeoutError:
            self._count("hung", request, "not ended after it was cancelled")
        except BusyError:
            self._count("refused", request)
        except ClientError as error:
            self._count("errors", request, f"{error.code.name}: {error}")
        else:
            is_right = collector.result() == self._expected[request]
            self._count("right" if is_right else "wrong", request, "" if is_right else "before it was cancelled")
        finally:
            leaving.cancel()

    async def _read(self, request: SoakRequest, timeout: float) -> Result:
        collector = Collector()
        async with request.send(self._client, timeout) as generation:
            async for event in generation:
                collector.add(event)
        return collector.result()

    def _count(self, outcome: str, request: SoakRequest, problem: str = "") -> None:
        self._counts.by_outcome[outcome] += 1
        self._counts.by_kind[request.kind] += 1
        if problem:
            self._counts.problems.append(f"{outcome}: {request.kind}: {problem}")

    async def _kill_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(self._chance.expovariate(1 / self._kill_seconds))
            await asyncio.to_thread(self._pair.stop, EXPERTS, signal.SIGKILL)
            self._counts.kills += 1
            await asyncio.sleep(self._chance.uniform(0, self._kill_seconds / 10))
            await asyncio.to_thread(self._restore)

    def _restore(self) -> None:
        """Starts the CPU expert service if it does not run, and waits until it serves."""
        if self._pair.processes[EXPERTS].poll() is not None:
            self._pair.start(EXPERTS)
        self._pair.wait_until_serving(self._pair.experts, _RESTART_SECONDS)
