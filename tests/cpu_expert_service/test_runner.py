"""The runner computes a layer with its own weights, and one message at a time."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from cpu_expert_service.kernel import LayerFunction, PyTorchKernel
from cpu_expert_service.runner import ExpiredError, Result, Runner
from fiddler.checkpoint import Checkpoint
from fiddler.expert_math import LayerWeights, UnknownActivationError, activation_function
from tests.support.tampering import SINGLE_FILE, edit_config


class WatchedKernel:
    """Answers with zeros. A test may block it, and sees how many calls were in it at a time."""

    name = "watched"
    num_threads = 1

    def __init__(self, inside: Callable[[], Any] = lambda: None) -> None:
        self.inside = inside
        self.calls = 0
        self.most_at_a_time = 0
        self._now = 0

    def prepare(self, layer: LayerWeights) -> LayerFunction:
        activation_function(layer.activation)
        return self.compute

    def compute(self, hidden: torch.Tensor, expert_ids: torch.Tensor, routing_weights: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self._now += 1
        self.most_at_a_time = max(self.most_at_a_time, self._now)
        try:
            self.inside()
        finally:
            self._now -= 1
        return torch.zeros_like(hidden)


def run(runner: Runner, deadline: float | None = None) -> Result:
    ids = torch.zeros(1, 1, dtype=torch.int32)
    return runner.run(0, torch.zeros(1, 64), expert_ids=ids, routing_weights=torch.ones(1, 1), deadline=deadline)


@pytest.mark.parametrize("layer", [0, 1])
def test_a_layer_is_computed_with_its_own_weights(tiny: Path, checkpoint: Checkpoint, layer: int) -> None:
    weights = load_file(tiny / SINGLE_FILE)
    prefix = f"model.layers.{layer + 1}.mlp.experts"
    hidden = torch.randn(3, 64, generator=torch.Generator().manual_seed(layer))
    expert_ids = torch.tensor([[0, 7], [3, -1], [-1, -1]], dtype=torch.int32)
    routing_weights = torch.tensor([[0.25, 0.75], [2.0, 9.0], [9.0, 9.0]])
    expected = torch.zeros(3, 64)
    for row, expert, weight in ((0, 0, 0.25), (0, 7, 0.75), (1, 3, 2.0)):
        gate, up, down = (weights[f"{prefix}.{expert}.{part}_proj.weight"] for part in ("gate", "up", "down"))
        expected[row] += weight * (down @ (functional.silu(gate @ hidden[row]) * (up @ hidden[row])))
    runner = Runner(checkpoint, PyTorchKernel(torch.get_num_threads()))
    torch.testing.assert_close(
        runner.run(layer, hidden, expert_ids=expert_ids, routing_weights=routing_weights).output, expected
    )


def test_an_activation_that_nobody_computes_is_refused(tiny: Path, tmp_path: Path) -> None:
    for file in tiny.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    edit_config(tmp_path, hidden_act="tanhshrink")
    with pytest.raises(UnknownActivationError, match="tanhshrink"):
        Runner(Checkpoint.open(tmp_path), WatchedKernel())


def test_messages_are_computed_one_at_a_time(checkpoint: Checkpoint) -> None:
    kernel = WatchedKernel(lambda: time.sleep(0.02))
    runner = Runner(checkpoint, kernel)
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda _: run(runner), range(8)))
    assert (kernel.calls, kernel.most_at_a_time) == (8, 1)
    assert max(result.queue_seconds for result in results) >= 0.02


def test_seconds_are_told_apart(checkpoint: Checkpoint) -> None:
    runner = Runner(checkpoint, WatchedKernel(lambda: time.sleep(0.03)))
    began = time.monotonic()
    alone = run(runner)
    took = time.monotonic() - began
    assert alone.queue_seconds >= 0
    assert alone.compute_seconds >= 0.03
    assert alone.queue_seconds + alone.compute_seconds <= took


@pytest.fixture
def held(checkpoint: Checkpoint) -> Iterator[tuple[Runner, WatchedKernel, threading.Event]]:
    """A runner that is busy until the event is set."""
    entered, let_go = threading.Event(), threading.Event()

    def inside() -> None:
        entered.set()
        assert let_go.wait(20)

    kernel = WatchedKernel(inside)
    runner = Runner(checkpoint, kernel)
    with ThreadPoolExecutor(1) as threads:
        holder = threads.submit(run, runner)
        try:
            assert entered.wait(20)
            yield runner, kernel, let_go
        finally:
            let_go.set()
        holder.result()


def test_a_message_whose_time_runs_out_while_it_waits_is_not_computed(
    held: tuple[Runner, WatchedKernel, threading.Event],
) -> None:
    runner, kernel, let_go = held
    deadline = time.monotonic() + 0.05
    with ThreadPoolExecutor(2) as threads:
        late = threads.submit(run, runner, deadline)
        patient = threads.submit(run, runner, deadline + 100)
        time.sleep(0.1)
        let_go.set()
        with pytest.raises(ExpiredError):
            late.result()
        assert patient.result().queue_seconds > 0.05
    assert kernel.calls == 2


def test_a_message_that_comes_too_late_is_not_computed(checkpoint: Checkpoint) -> None:
    kernel = WatchedKernel()
    with pytest.raises(ExpiredError):
        run(Runner(checkpoint, kernel), time.monotonic())
    assert kernel.calls == 0


def test_a_failure_leaves_the_way_free(checkpoint: Checkpoint) -> None:
    kernel = WatchedKernel(lambda: 1 / 0)
    runner = Runner(checkpoint, kernel)
    with pytest.raises(ZeroDivisionError):
        run(runner)
    kernel.inside = lambda: None
    assert torch.equal(run(runner).output, torch.zeros(1, 64))
