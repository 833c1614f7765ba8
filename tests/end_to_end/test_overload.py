"""More is asked than can be computed: what cannot be served in time is refused at once, and no priority is starved."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from client import Client, ClientError
from pair import Pair
from tests.support.pairs import start

NUM_TOKENS = 100
NUM_CALLERS = 24
_PATIENCE_SECONDS = 120.0


@pytest.fixture(scope="module")
def pair(tiny: Path) -> Iterator[Pair]:
    """One row, so that everything else waits."""
    with start(tiny, "--max-slots", "1") as running:
        yield running


@pytest.fixture
def client(pair: Pair) -> Iterator[Client]:
    with Client(pair.target) as client:
        yield client


def _generate(client: Client, timeout: float = _PATIENCE_SECONDS, priority: int = 0) -> float:
    """Seconds of one generation."""
    began = time.monotonic()
    client.generate([3, 4, 5], max_tokens=NUM_TOKENS, temperature=0, timeout=timeout, priority=priority).text()
    return time.monotonic() - began


def test_what_cannot_be_served_in_time_is_refused_at_once(client: Client) -> None:
    alone_seconds = max(_generate(client) for _ in range(5))
    timeout = 5 * alone_seconds
    refused_after = []

    def ask(_: int) -> str:
        began = time.monotonic()
        try:
            _generate(client, timeout)
        except ClientError as error:
            if error.code.name == "RESOURCE_EXHAUSTED":
                refused_after.append(time.monotonic() - began)
            return error.code.name
        return "OK"

    with ThreadPoolExecutor(NUM_CALLERS) as callers:
        outcomes = Counter(callers.map(ask, range(NUM_CALLERS)))
    assert outcomes["RESOURCE_EXHAUSTED"] > NUM_CALLERS / 2, outcomes
    assert outcomes["OK"] > 0, outcomes
    assert outcomes["DEADLINE_EXCEEDED"] < NUM_CALLERS / 4, outcomes
    assert sorted(refused_after)[len(refused_after) // 2] < timeout / 2


def test_a_steady_flow_at_a_higher_priority_does_not_starve_a_lower_one(client: Client) -> None:
    enough = threading.Event()

    def flow(_: int) -> None:
        while not enough.is_set():
            _generate(client, priority=9)

    with ThreadPoolExecutor(4) as callers:
        flows = [callers.submit(flow, number) for number in range(4)]
        try:
            time.sleep(0.2)
            _generate(client, priority=0)
        finally:
            enough.set()
        for each in flows:
            each.result()
