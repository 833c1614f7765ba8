"""The time that no strategy here gets below: the unavoidable work of each step on the busiest of its resources.

The experts that lie on the GPU are chosen in hindsight: those that save each request most. What is missing is
divided between the CPU and the link to the last byte so that both end together, nothing is launched, waited for or sent
by message, and the link is busy even while attention runs. What is not assumed is that residents move: a policy that
follows the requests closely can do better than the best that stay, so that a share above 1 would be possible.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from benchmarks.orchestration.batches import Batch
from benchmarks.orchestration.costs import System
from benchmarks.orchestration.strategies.server import Key
from benchmarks.orchestration.workloads import Request


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


def _step(system: System, batch: Batch, context: int, residents: set[Key], sequences: int) -> float:
    model, costs, rows = system.model, system.costs, batch.rows
    dense = model.layers * system.attention_seconds(rows, context, launch_seconds=0.0)
    dense += system.ends_seconds(rows, sequences)
    dense += model.moe_layers * system.gpu_seconds(model.shared_parameters, rows)
    here, missing = 0.0, []
    for layer, routed in enumerate(batch.layers):
        for expert in routed.active:
            if (layer, expert) in residents:
                here += system.gpu_seconds(model.expert_parameters, routed.counts[expert])
            else:
                missing.append(routed.counts[expert])
    # whichever experts are copied, the CPU keeps at least its cheapest and the GPU gets at least its cheapest
    on_cpu = [costs.cpu[count] for count in sorted(missing, reverse=True)]
    on_gpu = [system.gpu_seconds(model.expert_parameters, count) for count in sorted(missing)]
    return divide(dense, here, on_cpu, on_gpu, system.transfer_seconds)


def divide(dense: float, here: float, on_cpu: list[float], on_gpu: list[float], transfer: float) -> float:
    """The least max of CPU, GPU and link over all divisions of the missing experts, the last of them divided.

    Args:
        dense: Seconds of what the GPU computes before the CPU's experts can be.
        here: Of the experts that lie on the GPU.
        on_cpu: Of each missing expert on the CPU, descending.
        on_gpu: Of each on the GPU once it is there, ascending.
        transfer: Of one copy.
    """
    falling = dense + sum(on_cpu) - np.append(0.0, np.cumsum(on_cpu))
    rising = np.maximum(dense + here + np.append(0.0, np.cumsum(on_gpu)), transfer * np.arange(len(on_cpu) + 1))
    crossed = np.flatnonzero(rising >= falling)
    after = int(crossed[0]) if len(crossed) else len(on_cpu)
    if after == 0 or not len(crossed):
        return float(max(rising[after], falling[after]))
    before = after - 1
    gap, closing = falling[before] - rising[before], (rising - falling)[after]
    return float(rising[before] + gap / (gap + closing) * (rising[after] - rising[before]))
