"""`python -m gpu_service --dry-run`: reports what would be served, where its weights would be, and how fast at most.

It goes as far as a start without reading weights: headers, configurations, the tokenizer, and the model's code on
tensors without values (checks.py). It does not know what only computing shows: the memory of a step, the time between
the services.
"""

from dataclasses import dataclass
from typing import Any

import torch

from fiddler import host_memory, tensors
from fiddler.checkpoint import Checkpoint
from fiddler.sizes import format_bytes
from gpu_service.calibration.measure import expert_bytes
from gpu_service.errors import FlagError
from gpu_service.gpu_experts.expert_slots import ExpertSlots
from gpu_service.gpu_experts.memory_budget import DeviceMemory, SlotNeeds, parse_budget
from gpu_service.model_runner.dense.formats import DensePlan
from gpu_service.model_runner.dense.sizes import DenseSizes
from gpu_service.model_runner.trial import CacheSizes
from gpu_service.models.families import VERIFIED
from gpu_service.models.glossary import METHODS
from gpu_service.settings import Settings
from gpu_service.startup import estimate, read_bandwidth
from gpu_service.startup.checks import check
from gpu_service.startup.conversion import previewed
from gpu_service.startup.device import device_of, why_no_gpu
from gpu_service.startup.device_memory import experts_workspace_bytes, free_bytes, grouped_workspace_bytes
from gpu_service.startup.estimate import Sizes, Speeds
from gpu_service.startup.experts import NUM_STREAMING
from gpu_service.startup.kv_plan import plan

_SHORT_SECONDS = 0.005
"""For one token; messages, launches and sampling take about as long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A checkpoint that could be served."""

    checkpoint: Checkpoint
    experts_per_token: int
    """0 if the configuration does not say."""
    dtype: torch.dtype
    device: torch.device
    cache: CacheSizes | None
    """What the model keeps of a sequence; None if only computing shows it."""
    max_context: int
    dense: DenseSizes
    plan: DensePlan
    is_chosen: bool = False
    """Whether --device auto chose the device."""

    @property
    def num_experts(self) -> int:
        """In all layers."""
        return sum(layer.num_experts for layer in self.checkpoint.layers)

    @property
    def dense_bytes(self) -> int:
        """Of the dense weights as they are kept in memory."""
        return self.dense.kept_bytes(self.plan, self.dtype)

    @property
    def expert_bytes_per_token(self) -> int:
        """Of the experts that one token is routed to."""
        layers = self.checkpoint.layers
        return self.experts_per_token * sum(expert_bytes(layer) for layer in layers)

    @property
    def sizes(self) -> Sizes:
        """What estimate.py asks for."""
        return Sizes(
            dense_bytes=self.dense_bytes,
            expert_bytes=self.checkpoint.expert_bytes,
            bytes_per_token=self.expert_bytes_per_token,
            num_experts=self.num_experts,
        )


def report(settings: Settings) -> list[str]:
    """The lines to print.

    Raises:
        UserError: The model cannot be served; the text says why.
    """
    with previewed(settings) as converted:
        candidate = examine(converted.settings)
        resident = num_resident(candidate, settings)
        lines = [
            ("model", str(converted.model)),
            *([("converted", converted.note)] if converted.note else []),
            *_weights(candidate),
            *_memory(candidate, resident),
            _keys_and_values(candidate, settings),
            _limits(candidate),
            _speed(candidate, resident),
        ]
        return [f"{name + ':':10} {text}" for name, text in lines]


def figures(settings: Settings) -> dict[str, Any]:
    """The same as one object for programs; --dry-run-format json prints it. Sizes are in bytes.

    Raises:
        UserError: See `report`.
    """
    with previewed(settings) as converted:
        return {**_figures(examine(converted.settings), settings), "bytes_to_convert": converted.bytes_to_write}


def _figures(candidate: Candidate, settings: Settings) -> dict[str, Any]:
    resident = num_resident(candidate, settings)
    checkpoint, on_cpu = candidate.checkpoint, candidate.device.type == "cpu"
    bound = _bound(candidate, resident)
    return {
        "model": checkpoint.name,
        "family": checkpoint.model_type,
        "verified": checkpoint.model_type in VERIFIED,
        "weight_format": checkpoint.weight_format,
        "dense_format": candidate.plan.format_of(checkpoint, candidate.dtype),
        "dense_bytes": candidate.dense_bytes,
        "expert_bytes": checkpoint.expert_bytes,
        "experts": candidate.num_experts,
        "experts_resident": resident,
        "device": candidate.device.type,
        "memory_bytes": checkpoint.expert_bytes + (candidate.dense_bytes if on_cpu else 0),
        "free_memory_bytes": host_memory.measure().free_bytes,
        "device_bytes": None if on_cpu else candidate.dense_bytes,
        "tokens_per_second": None if bound is None else 1 / bound[0],
    }


def examine(settings: Settings) -> Candidate:
    """Checks all that a start checks before it reads weights.

    Raises:
        UserError: A start would fail.
    """
    checkpoint = Checkpoint.open(settings.model)
    device = device_of(settings.device)
    dtype = tensors.resolve_dtype(settings.dtype, checkpoint.expert_dtype)
    checked = check(settings, checkpoint, device=device, dtype=dtype)
    return Candidate(
        checkpoint=checkpoint,
        experts_per_token=checked.experts_per_token,
        dtype=dtype,
        device=device,
        cache=checked.cache,
        max_context=checked.max_context,
        dense=checked.dense,
        plan=DensePlan.resolve(settings.dense_format, device),
        is_chosen=settings.device == "auto",
    )


def num_resident(candidate: Candidate, settings: Settings) -> int:
    """How many experts would be resident on the device at least, if the KV cache fills its share.

    Raises:
        FlagError: --gpu-expert-memory asks for more than there is, or the dense weights do not fit.
    """
    if settings.placement == "none":
        return 0
    memory = _memory_left(candidate, settings)
    needs = SlotNeeds(ExpertSlots.slot_bytes(candidate.checkpoint), NUM_STREAMING)
    return estimate.num_resident(candidate.sizes, memory, needs, parse_budget(settings.gpu_expert_memory))


def _memory_left(candidate: Candidate, settings: Settings) -> DeviceMemory:
    """The device's memory once the dense weights and the KV cache are allocated."""
    if candidate.device.type == "cpu":
        host = host_memory.measure()
        return DeviceMemory(host.total_bytes, max(0, host.free_bytes - candidate.dense_bytes), 0, is_host=True)
    free, total = torch.cuda.mem_get_info(candidate.device)
    if candidate.dense_bytes > free:
        raise FlagError(
            f"--device: the dense weights take {format_bytes(candidate.dense_bytes)}, and {format_bytes(free)} are "
            f"free{'' if candidate.plan.codes_in == 'int4' else '; --dense-format int4 makes them smaller'}"
        )
    num_tokens = max(settings.prefill_chunk, settings.max_slots)
    layers, k, dtype = candidate.checkpoint.layers, candidate.experts_per_token, candidate.dtype
    workspace_bytes = max(
        experts_workspace_bytes(layers, experts_per_token=k, num_tokens=num_tokens, dtype=dtype),
        grouped_workspace_bytes(layers, experts_per_token=k, num_rows=settings.max_slots, dtype=dtype),
    )
    left = estimate.free_after_cache(free, candidate.dense_bytes, settings.kv_memory)
    return DeviceMemory(total, left, workspace_bytes)


def _weights(candidate: Candidate) -> list[tuple[str, str]]:
    checkpoint = candidate.checkpoint
    layers = checkpoint.layers
    family = VERIFIED.get(checkpoint.model_type)
    how = f"verified against {METHODS[family.test].short}" if family else "not verified"
    counts = sorted({layer.num_experts for layer in layers})
    sizes = sorted({expert_bytes(layer) for layer in layers})
    name = candidate.plan.format_of(checkpoint, candidate.dtype)
    dense = f"{format_bytes(candidate.dense_bytes)} of {name}"
    if candidate.dense_bytes != checkpoint.dense_bytes:
        dense = f"{format_bytes(checkpoint.dense_bytes)}, kept as {dense}"
    wanted = f", {candidate.experts_per_token} of them for each token" if candidate.experts_per_token else ""
    return [
        ("family", f"{checkpoint.model_type}, {how}"),
        ("dense", dense),
        ("experts", f"{format_bytes(checkpoint.expert_bytes)} in {checkpoint.weight_format}: {len(layers)} layers x "
         f"{estimate.span_text(counts, str)} of {estimate.span_text(sizes, format_bytes)}{wanted}"),
    ]  # fmt: skip


def _memory(candidate: Candidate, resident: int) -> list[tuple[str, str]]:
    host = host_memory.measure()
    expert_bytes = candidate.checkpoint.expert_bytes
    memory = f"{format_bytes(expert_bytes)} of experts, and {format_bytes(host.free_bytes)} are free"
    if expert_bytes > host.free_bytes:
        memory += ": too little, so experts would be read from the disk again and again"
        memory += _smaller(candidate)
    if candidate.device.type == "cpu":
        why = f", since {reason}" if candidate.is_chosen and (reason := why_no_gpu()) else ""
        return [("device", f"the CPU, which computes experts from memory{why}"), ("memory", memory)]
    free, total = torch.cuda.mem_get_info(candidate.device)
    name = torch.cuda.get_device_name(candidate.device)
    share = f"at least {resident} of {candidate.num_experts} experts" if resident else "no expert"
    return [
        ("device", f"{candidate.device} ({name}), {format_bytes(free)} of {format_bytes(total)} free"),
        ("resident", f"{share}, and {format_bytes(candidate.dense_bytes)} of dense weights"),
        ("memory", memory),
    ]


def _smaller(candidate: Candidate) -> str:
    """What a copy in fewer bits would take, unless the weights are in few already."""
    if candidate.checkpoint.is_coded:
        return ""
    num_weights = candidate.checkpoint.expert_bytes // candidate.checkpoint.expert_dtype.itemsize
    sizes = {name: format_bytes(int(num_weights * each)) for name, each in estimate.BYTES_PER_WEIGHT.items()}
    return f"; --expert-format int8 or int4 serves a copy, converted once, of {sizes['int8']} or {sizes['int4']}"


def _keys_and_values(candidate: Candidate, settings: Settings) -> tuple[str, str]:
    """The size of the KV cache, as warm-up will plan it.

    Raises:
        FlagError: See plan.
    """
    sizes, device = candidate.cache, candidate.device
    if sizes is None:
        return "kv cache", "known once the model is loaded"
    free = max(0, free_bytes(device) - candidate.dense_bytes)
    budget = plan(settings, sizes, max_context=candidate.max_context, device=device, free_bytes=free)
    states = f", and {format_bytes(sizes.row_bytes)} for each sequence" if sizes.row_bytes else ""
    return "kv cache", (
        f"{format_bytes(budget.num_bytes)} at most, {format_bytes(sizes.token_bytes)} for each token{states}: "
        f"{budget.num_tokens:,} tokens, and up to {budget.max_length:,} in one sequence"
    )


def _limits(candidate: Candidate) -> tuple[str, str]:
    """Memory limits of containers that hold both services, as compose.yaml takes them."""
    experts, others = estimate.limits_gib(candidate.sizes, on_cpu=candidate.device.type == "cpu")
    return "limits", f"CPU_EXPERT_MEMORY={experts}g and GPU_SERVICE_MEMORY={others}g are enough"


def _speed(candidate: Candidate, resident: int) -> tuple[str, str]:
    """The limit that reading the weights sets: decoding one token at a time cannot be faster."""
    bound = _bound(candidate, resident)
    if bound is None:
        return "decode", "unknown, since the configuration does not say how many experts a token is routed to"
    return "decode", estimate.rate_text(*bound) + _caveat(candidate, bound[0])


def _caveat(candidate: Candidate, seconds: float) -> str:
    """What the bound leaves out, if that is much."""
    if candidate.checkpoint.expert_bytes > host_memory.measure().free_bytes:
        return "; experts that do not fit into memory are read from the disk, which is far slower"
    return "; other things bound a model as small as this" if seconds < _SHORT_SECONDS else ""


def _bound(candidate: Candidate, resident: int) -> tuple[float, str] | None:
    """The shortest time for one token in seconds, and where it comes from; None if the configuration does not tell."""
    if not candidate.experts_per_token:
        return None
    host = read_bandwidth.host_bytes_per_second()
    sizes, wanted = candidate.sizes, candidate.expert_bytes_per_token
    if candidate.device.type == "cpu":
        why = f"{format_bytes(wanted + candidate.dense_bytes)} of weights read at {host / 1e9:.3g} GB/s"
        return estimate.seconds_per_token(sizes, Speeds(host)), why
    device = read_bandwidth.device_bytes_per_second(candidate.device)
    remote = estimate.remote_bytes(sizes, resident)
    return (
        estimate.seconds_per_token(sizes, Speeds(host, device), resident),
        f"{format_bytes(int(remote))} of experts read from memory at {host / 1e9:.3g} GB/s, and "
        f"{format_bytes(int(wanted - remote) + candidate.dense_bytes)} on the device at {device / 1e9:.4g} GB/s, if "
        "all experts are chosen equally often",
    )
