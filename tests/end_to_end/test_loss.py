"""The CPU expert service is lost in the middle of generations: their tokens stay the same, and it is used again."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from client import Client, GenerationChunk
from pair import Pair
from tests.support.losses import EXPERTS, Generations, in_use, lose_at_random, metric, tokens_of, wait_until
from tests.support.pairs import start

PROMPT = [3, 4, 5]
LONG = 400
EIGHT = [[3 + index, *range(20, 20 + 9 * index), 7] for index in range(8)]


@pytest.fixture(scope="module")
def pair(tiny: Path) -> Iterator[Pair]:
    """A pair that each test leaves intact."""
    with start(tiny, "--expert-timeout-seconds", "1") as running:
        yield running


@pytest.fixture
def client(pair: Pair) -> Iterator[Client]:
    with Client(pair.target) as client:
        yield client


def _computed(pair: Pair, route: str) -> float:
    return metric(pair, "fiddler_expert_selections_total", route=route)


def test_a_generation_goes_on_when_the_experts_are_killed_and_uses_them_when_they_are_back(
    pair: Pair, client: Client
) -> None:
    undisturbed = tokens_of(client, PROMPT, LONG)
    here = _computed(pair, "streamed")
    tokens: list[int] = []
    for message in client.generate(PROMPT, max_tokens=LONG, temperature=0):
        if isinstance(message, GenerationChunk):
            if not tokens:
                pair.stop(EXPERTS, signal.SIGKILL)
            tokens += message.token_ids
    assert tokens == undisturbed
    assert _computed(pair, "streamed") > here
    assert pair.is_serving(pair.target)
    wait_until(lambda: not in_use(pair))
    assert metric(pair, "fiddler_degraded") == 1
    assert metric(pair, "fiddler_expert_service_up") == 0

    remotely = _computed(pair, "remote")
    pair.start(EXPERTS)
    serving_at = wait_until(lambda: pair.is_serving(pair.experts))
    used_at = wait_until(lambda: in_use(pair), seconds=10)
    print(f"used again {max(0.0, used_at - serving_at):.2f} s after its return")
    assert tokens_of(client, PROMPT, LONG) == undisturbed
    assert _computed(pair, "remote") > remotely
    assert metric(pair, "fiddler_degraded") == 0
    assert metric(pair, "fiddler_expert_service_up") == 1
    assert metric(pair, "fiddler_degraded_seconds_total") > 0


def test_a_generation_goes_on_when_the_experts_stand_still(pair: Pair, client: Client) -> None:
    undisturbed = tokens_of(client, PROMPT, LONG)
    tokens: list[int] = []
    try:
        for message in client.generate(PROMPT, max_tokens=LONG, temperature=0):
            if isinstance(message, GenerationChunk):
                if not tokens:
                    pair.processes[EXPERTS].send_signal(signal.SIGSTOP)
                tokens += message.token_ids
        assert tokens == undisturbed
        assert not in_use(pair)
    finally:
        pair.processes[EXPERTS].send_signal(signal.SIGCONT)
    wait_until(lambda: in_use(pair), seconds=10)
    assert tokens_of(client, PROMPT, LONG) == undisturbed


def test_many_generations_do_not_notice_that_the_experts_come_and_go(pair: Pair, client: Client) -> None:
    undisturbed = [tokens_of(client, prompt, 60) for prompt in EIGHT]
    losses = metric(pair, "fiddler_expert_service_losses_total")
    with Generations(pair.target, EIGHT, undisturbed) as generations:
        lose_at_random(pair, 4, seed=4, longest_seconds=0.5)
    assert (generations.wrong, generations.failed, generations.hung) == ([], [], [])
    assert generations.num_right >= len(EIGHT)
    assert metric(pair, "fiddler_expert_service_losses_total") >= losses + 4


def test_experts_that_restart_while_nothing_runs_are_used_by_the_next_request(pair: Pair, client: Client) -> None:
    undisturbed = tokens_of(client, PROMPT, 20)
    assert pair.stop(EXPERTS) == 0
    pair.start(EXPERTS)
    wait_until(lambda: pair.is_serving(pair.experts) and in_use(pair))
    remotely = _computed(pair, "remote")
    assert tokens_of(client, PROMPT, 20) == undisturbed
    assert _computed(pair, "remote") > remotely
