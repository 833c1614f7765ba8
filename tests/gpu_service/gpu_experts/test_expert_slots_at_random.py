"""Thousands of random calls against a plain model of which expert is where, with copies always in flight.

Once on the CPU, where a copy writes while the test reads; once on an imitated device, where copies and computations are
enqueued and carried out later, in any order that the slots' marks allow: what reads weights must still find them.
"""

import random
from collections.abc import Callable

import pytest
import torch

from fiddler.checkpoint import Checkpoint
from fiddler.expert_math import ExpertWeights
from gpu_service.gpu_experts.expert_slots import ExpertSlots
from gpu_service.gpu_experts.keys import ExpertKey
from gpu_service.gpu_experts.lanes import HostLane
from gpu_service.gpu_experts.streaming import ExpertCopy
from tests.support import checkpoints
from tests.support.lanes import TwoStreamsLane
from tests.support.weights import plain

CALLS = 4000
CAPACITY, NUM_STREAMING = 5, 2
LAYERS, EXPERTS = 3, 7


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    directory = tmp_path_factory.mktemp("olmoe")
    return Checkpoint.open(checkpoints.write("olmoe", directory, dtype=torch.bfloat16))


class Caller:
    """Calls at random, and knows what the result must be."""

    def __init__(
        self, slots: ExpertSlots, read: Callable[[ExpertKey, ExpertWeights], None], pause: Callable[[], None], seed: int
    ) -> None:
        self.slots = slots
        self.read = read
        """Reads weights now or later, and compares them."""
        self.pause = pause
        self.random = random.Random(seed)
        self.kept: list[ExpertKey] = []
        self.capacity = CAPACITY
        self.demanded: list[ExpertCopy] = []
        self.done = dict.fromkeys(("waited", "kept", "swapped", "prefetched", "hurried", "waiting", "shrunk"), 0)

    def key(self) -> ExpertKey:
        return self.random.randrange(LAYERS), self.random.randrange(EXPERTS)

    def evictable(self) -> list[ExpertKey]:
        return [key for key in self.kept if key not in self.streamed()]

    def streamed(self) -> set[ExpertKey]:
        return {copy.key for copy in self.demanded}

    def stream(self) -> None:
        key = self.key()
        if key in self.streamed() or len(self.demanded) >= 5:
            return
        victim = self.random.choice([None, *self.random.sample(self.evictable(), min(1, len(self.evictable())))])
        self.done["hurried"] += key[1] in self.slots.pending(key[0])
        self.demanded.append(self.slots.stream(key, victim))
        if key not in self.kept and victim is not None:
            self.kept.remove(victim)
            self.kept.append(key)
            self.done["kept"] += 1
        self.done["waiting"] += len([copy for copy in self.demanded if copy.key not in self.kept]) > NUM_STREAMING

    def consume(self) -> None:
        if not self.demanded:
            return
        copy = self.demanded.pop(0)
        if self.random.random() < 0.8:
            self.read(copy.key, copy.wait())
            assert copy.key not in self.kept or copy.key[1] in self.slots.resident(copy.key[0])
            self.done["waited"] += 1
        copy.release()

    def read_resident(self) -> None:
        for layer in range(LAYERS):
            for expert in self.slots.resident(layer):
                self.read((layer, expert), self.slots.holding((layer, expert)).weights)

    def prefetch(self) -> None:
        key = self.key()
        on_device = key in self.kept or key in self.streamed()
        copy = self.slots.prefetch(key)
        assert copy is None or not on_device
        self.done["prefetched"] += copy is not None

    def cancel(self) -> None:
        self.slots.cancel_prefetch(self.key())

    def swap(self) -> None:
        evict, load = self.random.choice([None, self.key(), *self.evictable()]), self.key()
        has_room = self.capacity > len(self.kept) if evict is None else evict in self.evictable()
        possible = has_room and load not in self.kept and load not in self.streamed()
        assert self.slots.swap(evict, load) == possible
        if possible:
            if evict is not None:
                self.kept.remove(evict)
            self.kept.append(load)
            self.done["swapped"] += 1

    def shrink(self) -> None:
        if self.random.random() < 0.99 or self.capacity == 1:
            return
        empty = self.capacity - len(self.kept)
        last = self.evictable()[-1:]
        assert self.slots.shrink(1) == bool(empty or last)
        if not empty and last:
            self.kept.remove(last[0])
        self.capacity -= bool(empty or last)
        self.done["shrunk"] += bool(empty or last)

    def run(self) -> None:
        acts = [
            self.stream,
            self.stream,
            self.consume,
            self.consume,
            self.read_resident,
            self.prefetch,
            self.cancel,
            self.swap,
        ]
        for _ in range(CALLS):
            self.random.choice([*acts, self.shrink, self.slots.poll, self.pause])()
            self.check()
        while self.demanded:
            self.consume()

    def check(self) -> None:
        slots = self.slots
        assert list(slots.resident_keys()) == self.kept
        assert slots.capacity == self.capacity
        for layer in range(LAYERS):
            assert {(layer, expert) for expert in slots.resident(layer)} <= set(self.kept)
            pending = slots.pending(layer)
            assert all(0 < left <= 1 for left in pending.values())
            assert not pending.keys() & slots.resident(layer)


@pytest.mark.parametrize("seed", [1, 2])
def test_on_the_cpu(checkpoint: Checkpoint, seed: int) -> None:
    slots = ExpertSlots(checkpoint, torch.device("cpu"), CAPACITY, num_streaming=NUM_STREAMING, lane=HostLane(700))
    stored = slots._stored

    def read(key: ExpertKey, weights: ExpertWeights) -> None:
        assert torch.equal(plain(weights.up), plain(stored[key].up))
        assert torch.equal(plain(weights.down), plain(stored[key].down))

    caller = Caller(slots, read, lambda: None, seed)
    caller.run()
    slots.close()
    assert min(caller.done.values()) > 0, f"everything must have happened: {caller.done}"


@pytest.mark.parametrize("seed", [1, 2])
def test_on_a_device_that_works_later(checkpoint: Checkpoint, seed: int) -> None:
    lane = TwoStreamsLane(2048)
    slots = ExpertSlots(checkpoint, torch.device("cpu"), CAPACITY, num_streaming=NUM_STREAMING, lane=lane)
    stored = slots._stored
    choice = random.Random(seed)
    num_read = 0

    def read(key: ExpertKey, weights: ExpertWeights) -> None:
        def compare() -> None:
            nonlocal num_read
            num_read += 1
            assert torch.equal(plain(weights.up), plain(stored[key].up)), "overwritten or not there yet"
            assert torch.equal(plain(weights.down), plain(stored[key].down)), "overwritten or not there yet"

        lane.compute.run(compare)

    def pause() -> None:
        """Carries out some of the device's work."""
        for _ in range(choice.randrange(40)):
            choice.choice([lane.compute, lane.copies]).advance()

    caller = Caller(slots, read, pause, seed)
    caller.run()
    lane.synchronize()
    slots.close()
    assert min(caller.done.values()) > 0, f"everything must have happened: {caller.done}"
    assert num_read > CALLS / 10
