"""Makes the orchestration at the start: slots within the memory budget, measured costs, the first resident experts."""

import time

import structlog

from fiddler.checkpoint import Checkpoint
from fiddler.running.progress import Progress
from fiddler.sizes import format_bytes
from fiddler.v1 import experts_pb2
from gpu_service.calibration import costs
from gpu_service.calibration.costs import CalibrationTarget
from gpu_service.cpu_experts.client import ExpertClient
from gpu_service.gpu_experts.expert_slots import ExpertSlots
from gpu_service.gpu_experts.memory_budget import SlotNeeds, budget_bytes, parse_budget, slots_for
from gpu_service.model_runner.model import Model
from gpu_service.moe.orchestrated import Orchestrated
from gpu_service.moe.orchestration import MeasuredRemote, Orchestration
from gpu_service.moe.prefetch import Prefetcher
from gpu_service.placement import policies
from gpu_service.placement.policies import Placement
from gpu_service.placement.popularity import Popularity
from gpu_service.settings import Settings
from gpu_service.startup import device_memory

NUM_STREAMING = 2
"""Streaming slots of the device."""
_log = structlog.get_logger("gpu_service")


def make_orchestration(
    settings: Settings,
    checkpoint: Checkpoint,
    model: Model,
    *,
    description: experts_pb2.DescribeResponse,
    client: ExpertClient,
    popularity: Popularity | None,
    max_rows: int,
) -> Orchestration:
    """Allocates the slots, measures the costs, and loads the experts that the placement policy wants first.

    Args:
        settings: The user's.
        checkpoint: The experts.
        model: Has computed a token, so that the memory of the dense weights and the KV cache is allocated.
        description: What the CPU expert service reports about itself.
        client: Connected to that service.
        popularity: The content of the popularity file, if there is one.
        max_rows: The most rows of a batch.

    Raises:
        ExpertServiceError: The CPU expert service was lost meanwhile.
        UserError: A flag asks for what is not there, or a file is wrong.
    """
    slots = _allocate_slots(settings, checkpoint, model, max_rows=max_rows)
    try:
        target = CalibrationTarget(
            checkpoint=checkpoint,
            client=client,
            description=description,
            device=model.device,
            slots=slots,
            max_rows=max_rows,
            experts_per_token=model.num_experts_per_token,
        )
        latency = costs.obtain(target, settings.costs, settings.recalibrate)
        if slots is None:
            return MeasuredRemote(latency, settings.expert_timeout_seconds)
        num_experts = [layer.num_experts for layer in checkpoint.layers]
        inputs = policies.Inputs(
            num_experts=num_experts, capacity=slots.capacity, popularity=popularity, costs=lambda: latency.costs(0)
        )
        policy = policies.build(settings.placement, inputs)
        _fill(slots, policy)
    except BaseException:
        if slots is not None:
            slots.close()  # ends its thread and frees the device's memory
        raise
    prefetches = settings.prefetch == "on" or (settings.prefetch == "auto" and model.device.type == "cuda")
    return Orchestrated(
        latency=latency,
        slots=slots,
        placement=policy,
        prefetcher=Prefetcher(model.routers if prefetches else {}, slots, always=settings.prefetch == "on"),
        timeout_cap_seconds=settings.expert_timeout_seconds,
    )


def _allocate_slots(settings: Settings, checkpoint: Checkpoint, model: Model, *, max_rows: int) -> ExpertSlots | None:
    """The slots; None if the device is the CPU and the flags ask for none, since it computes experts without slots."""
    needs = SlotNeeds(ExpertSlots.slot_bytes(checkpoint), NUM_STREAMING)
    memory = device_memory.measure(model, checkpoint, max_rows)
    num_bytes = budget_bytes(parse_budget(settings.gpu_expert_memory), memory, needs)
    num_experts = sum(layer.num_experts for layer in checkpoint.layers)
    capacity = 0 if settings.placement == "none" else slots_for(num_bytes, needs, num_experts)
    if memory.is_host and num_bytes == 0:
        return None
    _log.info(
        "expert slots allocated",
        resident=capacity,
        of=num_experts,
        size=format_bytes(capacity * needs.allocated_bytes),
        free=format_bytes(memory.free_bytes),
        workspace=format_bytes(memory.workspace_bytes),
    )
    return ExpertSlots(checkpoint, model.device, capacity, num_streaming=NUM_STREAMING)


def _fill(slots: ExpertSlots, policy: Placement) -> None:
    began = time.monotonic()
    with Progress("copying experts to the device") as progress:
        slots.load(policy.initial(), progress)
    _log.info("experts placed", resident=slots.capacity - slots.num_empty, seconds=round(time.monotonic() - began, 2))
