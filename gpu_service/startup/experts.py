"""Makes what plans are made from at start-up: slots within the memory's budget, measured costs, a filled placement."""

import time

import structlog
from tqdm import tqdm

from fiddler.checkpoint import Checkpoint
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
"""Streaming slots."""
_log = structlog.get_logger("gpu_service")


def prepare(
    settings: Settings,
    checkpoint: Checkpoint,
    model: Model,
    description: experts_pb2.DescribeResponse,
    client: ExpertClient,
    popularity: Popularity | None,
    largest_chunk: int,
) -> Orchestration:
    """Measures, takes the device's memory, and loads the experts that are to lie there.

    Args:
        settings: What the user asks for.
        checkpoint: The experts.
        model: Has computed a token.
        description: What the CPU expert service said of itself.
        client: Connected to that service.
        popularity: What the user's file says.
        largest_chunk: The most tokens of a prompt that are computed at once, ever.

    Raises:
        ExpertServiceError: The CPU expert service was lost meanwhile.
        UserError: A flag asks for what is not there, or a file is wrong.
    """
    max_rows = max(largest_chunk, settings.max_slots)
    slots = _take_slots(settings, checkpoint, model, max_rows)
    try:
        target = CalibrationTarget(
            checkpoint, client, description, model.device, slots, max_rows, model.num_experts_per_token
        )
        latency = costs.obtain(target, settings.costs, settings.recalibrate)
        if slots is None:
            return MeasuredRemote(latency, settings.expert_timeout_seconds)
        num_experts = [layer.num_experts for layer in checkpoint.layers]
        inputs = policies.Inputs(num_experts, slots.capacity, popularity, lambda: latency.costs(0))
        policy = policies.build(settings.placement, inputs)
        _fill(slots, policy)
    except BaseException:
        if slots is not None:
            slots.close()  # its thread, and the device's memory
        raise
    prefetches = settings.prefetch == "on" or (settings.prefetch == "auto" and model.device.type == "cuda")
    return Orchestrated(
        latency=latency,
        slots=slots,
        placement=policy,
        prefetcher=Prefetcher(model.routers if prefetches else {}, slots, always=settings.prefetch == "on"),
        timeout_cap_seconds=settings.expert_timeout_seconds,
    )


def _take_slots(settings: Settings, checkpoint: Checkpoint, model: Model, max_rows: int) -> ExpertSlots | None:
    """None where the device is the CPU and no slots are asked for: it has the experts at hand without."""
    needs = SlotNeeds(ExpertSlots.slot_bytes(checkpoint), NUM_STREAMING)
    memory = device_memory.measure(model, checkpoint, max_rows)
    num_bytes = budget_bytes(parse_budget(settings.gpu_expert_memory), memory, needs)
    num_experts = sum(layer.num_experts for layer in checkpoint.layers)
    capacity = 0 if settings.placement == "none" else slots_for(num_bytes, needs, num_experts)
    if memory.is_host and num_bytes == 0:
        return None
    _log.info(
        "memory for experts",
        resident=capacity,
        of=num_experts,
        bytes=capacity * needs.allocated_bytes,
        free_bytes=memory.free_bytes,
        workspace_bytes=memory.workspace_bytes,
    )
    return ExpertSlots(checkpoint, model.device, capacity, num_streaming=NUM_STREAMING)


def _fill(slots: ExpertSlots, policy: Placement) -> None:
    began = time.monotonic()
    with tqdm(desc="experts to the device", unit="B", unit_scale=True, disable=None) as bar:

        def progress(done_bytes: int, total_bytes: int) -> None:
            bar.total = total_bytes
            bar.update(done_bytes - bar.n)

        slots.load(policy.initial(), progress)
    _log.info("experts placed", resident=slots.capacity - slots.num_empty, seconds=round(time.monotonic() - began, 2))
