"""The time that no strategy here gets below: the unavoidable work of each step on the busiest of its resources.

GPU and CPU share all of a step's experts, and CPU and link those that do not lie on the GPU, to the last byte so that
both end together; the bound is the longer of the two. Which experts lie on the GPU is chosen in hindsight: those that
save each request most. Nothing is launched, waited for or sent by message, and the link is busy even while attention
runs. What is not assumed is that residents move: a policy that follows the requests closely could do better than the
best that stay.
"""

from collections import defaultdict
from collections.abc import Sequence

from benchmarks.orchestration.batches import Batch
from benchmarks.orchestration.costs import System
from benchmarks.orchestration.strategies.server import Key
from benchmarks.orchestration.workloads import Request

Sides = tuple[float, float]
"""Seconds of one expert on the GPU, its weights being there, and on the CPU."""


def seconds(system: System, requests: Sequence[Request], is_prompt: bool) -> float:
    """Of all that is counted in these requests: the prompts, or the decode steps."""
    total = 0.0
    for request in requests:
        # anew for each request, for nothing
        steps = [request.prompt] if is_prompt else request.steps
        residents = _most_worth(system, steps)
        for number, batch in enumerate(steps, 1):
            context = batch.rows if is_prompt else request.prompt.rows + number
            total += _step(system, batch, context, residents, 1 if is_prompt else batch.rows)
    return total


def _most_worth(system: System, steps: Sequence[Batch]) -> set[Key]:
    """The experts that would take longest elsewhere."""
    cpu, transfer = system.costs.cpu, system.transfer_seconds
    worth: dict[Key, float] = defaultdict(float)
    for batch in steps:
        for layer, routed in enumerate(batch.layers):
            for expert in routed.active:
                worth[layer, expert] += min(cpu[routed.counts[expert]], transfer)
    return set(sorted(worth, key=lambda key: -worth[key])[: system.expert_slots])


def _step(system: System, batch: Batch, context: int, on_gpu: set[Key], sequences: int) -> float:
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
    return dense + divide(dense, residents, missing, system.transfer_seconds)


def divide(head_start: float, residents: Sequence[Sides], missing: Sequence[Sides], transfer: float) -> float:
    """What no division of experts between CPU and GPU is below, even where each may be divided itself.

    Args:
        head_start: Seconds for which copies can be made before the experts' time begins.
        residents: Experts whose weights lie on the GPU.
        missing: Experts that are copied first, where the GPU computes them.
        transfer: Seconds of one copy.
    """
    cpu = sorted((cpu for _, cpu in missing), reverse=True)
    return max(_both_sides([*residents, *missing]), _cpu_and_link(head_start, cpu, transfer))


def _both_sides(experts: Sequence[Sides]) -> float:
    """Were all weights on the GPU: what is quickest on the CPU for what it takes on the GPU is computed there."""
    on_gpu, on_cpu = sum(gpu for gpu, _ in experts), 0.0
    for gpu, cpu in sorted(experts, key=lambda one: one[1] / one[0]):
        share = min(1.0, (on_gpu - on_cpu) / (gpu + cpu))
        on_gpu -= share * gpu
        on_cpu += share * cpu
        if share < 1:
            break
    return max(on_gpu, on_cpu)


def _cpu_and_link(head_start: float, cpu: Sequence[float], transfer: float) -> float:
    """Did computing on the GPU take no time: those that take longest on the CPU are copied."""
    on_cpu, copying = sum(cpu), -head_start
    for seconds in cpu:
        share = max(0.0, min(1.0, (on_cpu - copying) / (seconds + transfer)))
        on_cpu -= share * seconds
        copying += share * transfer
        if share < 1:
            break
    return max(on_cpu, 0.0)
