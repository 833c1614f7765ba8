"""The quality of the planner's plans, and the time of planning: the only real time here."""

import random
import time
from collections.abc import Iterator, Sequence

from benchmarks.orchestration import machines, models, optimality
from benchmarks.orchestration.costs import System
from gpu_service.planning import planner
from gpu_service.planning.latency_model import Costs

_REPETITIONS = 5
_MODEL = "qwen3_30b_a3b"


def worst_ratio(num_cases: int, seed: int) -> float:
    """The smallest ratio, over random layers, of the best plan's seconds to those of the planner's."""
    rng = random.Random(seed)
    return min(optimality.ratio(optimality.random_case(rng)) for _ in range(num_cases))


def microseconds(num_layers: int, seed: int) -> list[float]:
    """Microseconds of planning each of `num_layers` layers of 128 active experts, the best of a few repetitions."""
    rng = random.Random(seed)
    return [_seconds(*layer) * 1e6 for layer in _layers(rng, num_layers)]


def _layers(rng: random.Random, num_layers: int) -> Iterator[tuple[Sequence[int], set[int], Costs]]:
    """Layers with few and many rows, with and without resident experts, on every machine in turn."""
    model = models.load(_MODEL)
    costs = [System(machines.load(name), model).costs for name in machines.names()]
    for number in range(num_layers):
        most_rows = rng.choice([2, 16, 64, 256])
        counts = [rng.randint(1, most_rows) for _ in range(model.experts)]
        share = rng.choice([0.0, 0.3, 0.6])
        resident = {expert for expert in range(model.experts) if rng.random() < share}
        yield counts, resident, costs[number % len(costs)]


def _seconds(counts: Sequence[int], resident: set[int], costs: Costs) -> float:
    taken = []
    for _ in range(_REPETITIONS):
        began = time.perf_counter()
        planner.plan(counts, resident, costs)
        taken.append(time.perf_counter() - began)
    return min(taken)
