"""A lower bound of every strategy's time: the unavoidable work of each step on its busiest resource.

GPU and CPU share all of a step's experts, and CPU and link share those that are not resident on the GPU, divided so
that both end at the same time; the bound is the longer of the two. The resident experts are chosen in hindsight: those
that save each request most. Launches, waits and messages take no time, and the link is busy even while attention runs.
Residents are assumed to stay: a policy that swaps them with the requests could beat the best set that stays.
"""

from collections import defaultdict
from collections.abc import Sequence

from benchmarks.orchestration.batches import Batch
from benchmarks.orchestration.costs import System
from benchmarks.orchestration.workloads import Request
from gpu_service.gpu_experts.keys import ExpertKey

Sides = tuple[float, float]
"""Seconds of one expert on the GPU if it is resident, and on the CPU."""


def seconds(system: System, requests: Sequence[Request], is_prompt: bool) -> float:
    """The bound for the prompts of these requests, or for their decode steps."""
    total = 0.0
    for request in requests:
        # replaced for each request, at no cost
        steps = [request.prompt] if is_prompt else request.steps
        residents = _most_worth(system, steps)
        for number, batch in enumerate(steps, 1):
            context = batch.rows if is_prompt else request.prompt.rows + number
            total += _step(system, batch, residents, context=context, sequences=1 if is_prompt else batch.rows)
    return total


def _most_worth(system: System, steps: Sequence[Batch]) -> set[ExpertKey]:
    """The experts that would take longest if they were not resident."""
    cpu, transfer = system.costs.cpu, system.transfer_seconds
    worth: dict[ExpertKey, float] = defaultdict(float)
    for batch in steps:
        for layer, routed in enumerate(batch.layers):
            for expert in routed.active:
                worth[layer, expert] += min(cpu[routed.counts[expert]], transfer)
    return set(sorted(worth, key=lambda key: -worth[key])[: system.expert_slots])


def _step(system: System, batch: Batch, on_gpu: set[ExpertKey], *, context: int, sequences: int) -> float:
    model, costs, rows = system.model, system.costs, batch.rows
    dense = model.layers * system.attention_seconds(rows, context, launch_seconds=0.0)
    dense += system.ends_seconds(rows, sequences)
    dense += model.moe_layers * system.gpu_seconds(model.shared_parameters, rows)
    residents: list[Sides] = []
    missing: list[Sides] = []
    for layer, routed in enumerate(batch.layers):
        for expert in routed.active:
            count = routed.counts[expert]
            sides = system.gpu_seconds(model.expert_parameters, count), costs.cpu[count]
            (residents if (layer, expert) in on_gpu else missing).append(sides)
    return dense + divide(residents, missing, head_start=dense, transfer=system.transfer_seconds)


def divide(residents: Sequence[Sides], missing: Sequence[Sides], *, head_start: float, transfer: float) -> float:
    """A lower bound of all divisions of experts between CPU and GPU, even if single experts can be divided.

    Args:
        residents: Experts that are resident on the GPU.
        missing: Experts that must be copied before the GPU computes them.
        head_start: Seconds of copying before the experts' time begins.
        transfer: Seconds of one copy.
    """
    cpu = sorted((cpu for _, cpu in missing), reverse=True)
    return max(_both_sides([*residents, *missing]), _cpu_and_link(head_start, cpu, transfer))


def _both_sides(experts: Sequence[Sides]) -> float:
    """The bound if all weights were on the GPU: the CPU takes those that it computes fastest relative to the GPU."""
    on_gpu, on_cpu = sum(gpu for gpu, _ in experts), 0.0
    for gpu, cpu in sorted(experts, key=lambda one: one[1] / one[0]):
        share = min(1.0, (on_gpu - on_cpu) / (gpu + cpu))
        on_gpu -= share * gpu
        on_cpu += share * cpu
        if share < 1:
            break
    return max(on_gpu, on_cpu)


def _cpu_and_link(head_start: float, cpu: Sequence[float], transfer: float) -> float:
    """The bound if computing on the GPU took no time: the experts that take longest on the CPU are copied."""
    on_cpu, copying = sum(cpu), -head_start
    for seconds in cpu:
        share = max(0.0, min(1.0, (on_cpu - copying) / (seconds + transfer)))
        on_cpu -= share * seconds
        copying += share * transfer
        if share < 1:
            break
    return max(on_cpu, 0.0)
