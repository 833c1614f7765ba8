"""Costs and policies with which the planner sends experts along a given route."""

from dataclasses import dataclass

from fiddler.checkpoint import Checkpoint
from gpu_service.gpu_experts.expert_slots import ExpertSlots
from gpu_service.moe.dispatcher import Dispatcher
from gpu_service.moe.orchestrated import Orchestrated
from gpu_service.moe.prefetch import Prefetcher
from gpu_service.placement import policies
from gpu_service.planning.latency_model import LatencyModel, Measurements

FAST, SLOW = 1e-6, 1.0
_MAX_ROWS = 1024


@dataclass(frozen=True)
class Route:
    """Seconds of an expert on the CPU and of its copy, and the policy that decides which are resident."""

    cpu_seconds: float
    transfer_seconds: float
    policy: str = "none"


MIXED = Route(FAST, FAST, "layers")


def use_route(
    dispatcher: Dispatcher,
    checkpoint: Checkpoint,
    slots: ExpertSlots,
    route: Route,
    *,
    prefetcher: Prefetcher | None = None,
) -> None:
    """Makes a dispatcher plan with these costs, and fills the slots as the policy decides."""
    measured = Measurements(
        expert_bytes=1,
        cpu=((1, route.cpu_seconds),),
        hop=((1, 1e-9),),
        gpu=((1, 1e-9),),
        transfer=(route.transfer_seconds,),
    )
    num_experts = [layer.num_experts for layer in checkpoint.layers]
    latency = LatencyModel(measured, [1] * len(num_experts), _MAX_ROWS)
    inputs = policies.Inputs(
        num_experts=num_experts, capacity=slots.capacity, popularity=None, costs=lambda: latency.costs(0)
    )
    policy = policies.build(route.policy, inputs)
    slots.load(policy.initial())
    dispatcher.use(
        Orchestrated(
            latency=latency,
            slots=slots,
            placement=policy,
            prefetcher=prefetcher or Prefetcher({}, slots, always=False),
            timeout_cap_seconds=60.0,
        )
    )
