"""Measures what each way to compute an expert costs on this machine, through the same code that serves requests.

It takes about two seconds. What a slow machine cannot measure in that time is extrapolated by planning/curve.py.
"""

import math
import time
from collections.abc import Callable, Sequence
from itertools import cycle

import torch

from fiddler.checkpoint import Checkpoint, CheckpointLayer
from fiddler.expert_math import expert_forward, layer_combination
from gpu_service.cpu_experts.backend import RemoteExperts
from gpu_service.gpu_experts.expert_slots import ExpertSlots
from gpu_service.planning.curve import Sample
from gpu_service.planning.latency_model import Measurements

_BUDGET_SECONDS = 2.0
_CPU_SHARE = 0.6
"""The CPU's share of the time: it is the slowest, and differs most between machines."""
_GPU_SHARE = 0.2
_POINT_SHARE = 1 / 6
"""The share of either of these for one number of rows."""
_REPEATS = 5
"""The most timings at one number of rows."""
_LEAST_OF_FIRST = 3
"""The fewest timings of one row, which is what most layers need: a single timing may be far off."""
_HOP_REPEATS = 15
_HOP_ROWS = 256
_MOST_AT_ONCE = 8
"""The most experts of one message."""
_IN_A_ROW = 8
"""Experts that are enqueued at once on a GPU, so that its queue is never empty, as in a layer of several experts."""
Clock = Callable[[], float]


def expert_bytes(layer: CheckpointLayer) -> int:
    """Returns the bytes of one expert, including biases."""
    return layer.experts[0].num_bytes


def measured_layers(checkpoint: Checkpoint) -> list[int]:
    """Returns the layers that are measured for all: those whose experts have the most common size."""
    sizes = [expert_bytes(layer) for layer in checkpoint.layers]
    usual = max(sizes, key=sizes.count)
    return [index for index, size in enumerate(sizes) if size == usual]


def calibrate(
    checkpoint: Checkpoint,
    client: RemoteExperts,
    *,
    dtype: torch.dtype,
    max_rows: int,
    experts_per_row: int,
    slots: ExpertSlots | None = None,
    device: torch.device | None = None,
) -> Measurements:
    """Measures both sides. Nothing else may use the service, the device or the slots meanwhile.

    Args:
        checkpoint: The experts.
        client: Connected to the CPU expert service.
        dtype: The dtype of hidden rows.
        max_rows: The most rows of a message.
        experts_per_row: How many experts a row is routed to.
        slots: Copy experts to the device; None if no expert is ever copied there.
        device: Where the slots are.

    Raises:
        ExpertServiceError: The CPU expert service was lost.
    """
    service = _Service(checkpoint, client, dtype=dtype, max_rows=max_rows, experts_per_row=experts_per_row)
    hop = service.measure_hop()
    cpu = measure_by_rows(service.seconds_of_one, max_rows, _BUDGET_SECONDS * _CPU_SHARE)
    measured = checkpoint.layers[measured_layers(checkpoint)[0]]
    transfer = slots.time_transfer() if slots else math.inf
    if slots is None or device is None or transfer == math.inf:
        return Measurements(expert_bytes(measured), cpu, hop)
    gpu = _measure_gpu(checkpoint, slots, device=device, dtype=dtype, max_rows=max_rows)
    return Measurements(expert_bytes(measured), cpu=cpu, hop=hop, gpu=gpu, transfer=(transfer,))


def measure_by_rows(
    seconds_of: Callable[[int], float], max_rows: int, budget_seconds: float, *, clock: Clock = time.perf_counter
) -> tuple[Sample, ...]:
    """Measures at powers of two until time is up; every other power first, so that the curve reaches far early.

    Args:
        seconds_of: Measures once at a number of rows.
        max_rows: The most rows.
        budget_seconds: How long it may take. One row is measured in any case, because a curve needs a point.
        clock: Returns seconds.
    """
    deadline = clock() + budget_seconds
    powers = [2**power for power in range(max_rows.bit_length())]
    took: dict[int, float] = {}
    samples = []
    for rows in [*powers[::2], *powers[1::2]]:
        fewer = max((other for other in took if other < rows), default=0)
        began = now = clock()
        longest = took[fewer] * rows / fewer if fewer else 0.0  # at most: reading the weights does not grow with rows
        for repeat in range(1, _REPEATS + 1):
            if now + longest > deadline:
                break
            samples.append((rows, seconds_of(rows)))
            now, before = clock(), now
            longest = took[rows] = now - before
            if now - began > budget_seconds * _POINT_SHARE and repeat >= (1 if rows > 1 else _LEAST_OF_FIRST):
                break
    return tuple(samples)


class _Service:
    """Sends messages to the CPU expert service, each for other experts than the last, so that no cache holds them."""

    def __init__(
        self, checkpoint: Checkpoint, client: RemoteExperts, *, dtype: torch.dtype, max_rows: int, experts_per_row: int
    ) -> None:
        """Sends one message untimed, because the first one waits for what the service initialises on first use."""
        self._client = client
        self._max_rows = max_rows
        layers = measured_layers(checkpoint)
        layer = checkpoint.layers[layers[0]]
        # as many experts in a message as a row has, because they share the memory's bandwidth
        num = max(1, min(experts_per_row, layer.num_experts, _MOST_AT_ONCE))
        self._groups = cycle(_groups(layers, layer.num_experts, num))
        self._hidden = torch.randn(max_rows, layer.hidden_size).to(dtype)
        self._send(1, computes=True)

    def measure_hop(self) -> tuple[Sample, ...]:
        """Measures messages of one row and of many, without any expert for the service to compute."""
        repeats = {1: _HOP_REPEATS, min(_HOP_ROWS, self._max_rows): _REPEATS}
        return tuple(
            (rows, self._send(rows, computes=False)[0]) for rows, count in repeats.items() for _ in range(count)
        )

    def seconds_of_one(self, rows: int) -> float:
        """Measures computing one expert of a message, each of which has all of the message's rows."""
        _, computing, num = self._send(rows, computes=True)
        return computing / num

    def _send(self, rows: int, *, computes: bool) -> tuple[float, float, int]:
        """Sends a message. Returns (seconds until the answer, seconds of computing, experts)."""
        layer, experts = next(self._groups)
        ids = torch.tensor(experts if computes else [-1] * len(experts), dtype=torch.int32).repeat(rows, 1)
        weights = torch.full(ids.shape, 1.0 / len(experts))
        began = time.perf_counter()
        pending = self._client.submit(layer, self._hidden[:rows], expert_ids=ids, routing_weights=weights)
        pending.join()
        seconds = time.perf_counter() - began
        return seconds, pending.compute_seconds or seconds, len(experts)


def _groups(layers: Sequence[int], num_experts: int, num: int) -> list[tuple[int, list[int]]]:
    """Returns layers and `num` experts of each. Consecutive groups are of different layers, if there are several."""
    starts = range(0, num_experts, num)
    return [(layer, [(start + i) % num_experts for i in range(num)]) for start in starts for layer in layers]


def _measure_gpu(
    checkpoint: Checkpoint, slots: ExpertSlots, *, device: torch.device, dtype: torch.dtype, max_rows: int
) -> tuple[Sample, ...]:
    """Measures one expert by rows, with its weights on the device."""
    index = measured_layers(checkpoint)[0]
    layer = checkpoint.layers[index]
    combine = layer_combination(layer.activation)
    hidden = torch.randn(max_rows, layer.hidden_size).to(device, dtype)
    total = torch.zeros(hidden.shape, dtype=torch.float32, device=device)
    weights = torch.ones(max_rows, 1, device=device)
    copy = slots.stream((index, 0))
    try:
        matrices = copy.wait()

        in_a_row = _IN_A_ROW if device.type == "cuda" else 1

        def seconds(rows: int) -> float:
            chosen = torch.arange(rows, device=device)
            _synchronize(device)
            began = time.perf_counter()
            for _ in range(in_a_row):
                output = expert_forward(matrices, combine, hidden.index_select(0, chosen))
                total.index_add_(0, chosen, output.to(torch.float32) * weights[:rows])
            _synchronize(device)
            return (time.perf_counter() - began) / in_a_row

        with torch.inference_mode():
            seconds(1)  # untimed: the first one waits for what is initialised on first use
            return measure_by_rows(seconds, max_rows, _BUDGET_SECONDS * _GPU_SHARE)
    finally:
        copy.release()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
