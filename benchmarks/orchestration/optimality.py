"""Compares the planner's plans with the best possible ones, on random layers.

It knows what a plan costs, and not how the planner finds one: `brute_force` tries all 2^n plans.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from gpu_service.planning import planner
from gpu_service.planning.latency_model import Costs

MAX_EXPERTS = 12
"""The most non-resident experts in a random case: 4096 plans."""

_MAX_ROWS = 600


@dataclass(frozen=True, slots=True)
class Case:
    """The planner's input: see `planner.plan`."""

    counts: Sequence[int]
    resident: frozenset[int]
    costs: Costs
    pending: Mapping[int, float] = field(default_factory=dict)

    def plan(self) -> planner.Plan:
        """The planner's plan."""
        return planner.plan(self.counts, self.resident, self.costs, pending=self.pending)


def seconds(case: Case, streamed: Sequence[int], remote: Sequence[int]) -> tuple[float, float]:
    """Seconds of a plan on the CPU's side and on the GPU's, written from the definition of the cost model."""
    costs, counts = case.costs, case.counts
    row = _row_seconds(costs)
    cpu = costs.round_trip + sum(costs.cpu[counts[e]] + row * counts[e] for e in remote) if remote else 0.0
    here = [expert for expert, count in enumerate(counts) if count and expert in case.resident]
    copies = sum(costs.transfer * case.pending.get(expert, 1.0) for expert in streamed)
    return cpu, max(copies, sum(costs.gpu[counts[expert]] for expert in [*here, *streamed]))


def brute_force(case: Case) -> float:
    """Seconds of the best of all plans."""
    costs, counts = case.costs, case.counts
    experts = [expert for expert, count in enumerate(counts) if count]
    remote, copies, compute = np.zeros(1), np.zeros(1), np.zeros(1)
    for expert in experts:
        count = counts[expert]
        if expert in case.resident:
            compute = compute + costs.gpu[count]
            continue
        # the plans so far with this expert on the CPU, then the same with its weights copied
        remote = np.concatenate([remote + costs.cpu[count] + _row_seconds(costs) * count, remote])
        copies = np.concatenate([copies, copies + costs.transfer * case.pending.get(expert, 1.0)])
        compute = np.concatenate([compute, compute + costs.gpu[count]])
    # the last plan sends no message
    remote[:-1] += costs.round_trip
    return float(np.maximum(remote, np.maximum(copies, compute)).min())


def ratio(case: Case) -> float:
    """Seconds of the best plan over those of the planner's: 1 if that is as good."""
    plan = case.plan()
    ours, best = max(seconds(case, plan.streamed, plan.remote)), brute_force(case)
    return 1.0 if ours == best else best / ours


def random_case(rng: random.Random, max_experts: int = MAX_EXPERTS) -> Case:
    """A layer of up to `max_experts` experts, of every kind that makes planning hard or unusual.

    The sides are scaled to similar costs, since planning is easy if one side is much cheaper.
    """
    counts = _counts(rng, rng.randint(1, max_experts))
    share = rng.choice([0.0, 0.0, 0.2, 0.5, 1.0])
    resident = frozenset(expert for expert in range(len(counts)) if rng.random() < share)
    cpu, gpu = _curve(rng), _curve(rng)
    transfer = rng.uniform(0.2, 2) * cpu[rng.choice(counts)] + 1e-9
    compute = rng.choice([0.0, 0.01, 1.0, 1.0]) * rng.uniform(0.1, 2) * transfer / (gpu[max(counts)] or 1.0)
    costs = Costs(
        cpu=cpu,
        gpu=[compute * value for value in gpu],
        transfer=transfer if rng.random() > 0.03 else math.inf,
        round_trip=rng.choice([0.0, 0.01, 0.3, 3.0]) * rng.random() * transfer if rng.random() > 0.03 else math.inf,
        row=rng.choice([0.0, 0.01, 0.3]) * rng.random() * transfer / 100,
        experts_per_row=rng.choice([1, 2, 8]),
    )
    return Case(counts, resident, costs, _pending(rng, len(counts)))


def _row_seconds(costs: Costs) -> float:
    """Seconds for each row of each remote expert: half of a row's experts are assumed to share its transfer."""
    return costs.row / max(1.0, costs.experts_per_row / 2)


def _counts(rng: random.Random, num_experts: int) -> list[int]:
    style = rng.choice(["equal", "decode", "prefill", "zipf", "huge"])
    if style == "equal":
        return [rng.randint(1, 40)] * num_experts
    if style == "zipf":
        scale = rng.randint(1, _MAX_ROWS - 1)
        return rng.sample([scale // (rank + 1) for rank in range(num_experts - 1)] + [1], num_experts)
    counts = [rng.randint(0, 4 if style == "decode" else 200) for _ in range(num_experts)]
    counts[rng.randrange(num_experts)] = rng.randint(300, _MAX_ROWS - 1) if style == "huge" else 1
    return counts


def _curve(rng: random.Random) -> list[float]:
    """Seconds by rows: flat while reading weights dominates and then a line, only a line, or any ascending steps."""
    style = rng.choice(["roofline", "roofline", "line", "steps"])
    if style == "steps":
        steps = {rng.randrange(1, _MAX_ROWS): rng.random() for _ in range(20)} | {1: rng.random()}
        total, curve = 0.0, []
        for rows in range(_MAX_ROWS):
            total += steps.get(rows, 0.0)
            curve.append(total)
        return curve
    knee = 1 if style == "line" else rng.choice([4, 10, 60, 400])
    return [0.0] + [max(1.0, rows / knee) for rows in range(1, _MAX_ROWS)]


def _pending(rng: random.Random, num_experts: int) -> dict[int, float]:
    share = rng.choice([0.0, 0.0, 0.2, 1.0])
    return {expert: 1 - rng.random() for expert in range(num_experts) if rng.random() < share}
