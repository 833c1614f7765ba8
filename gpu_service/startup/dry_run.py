"""`python -m gpu_service --dry-run`: what would be served, from where, how fast at most; or why it cannot be.

It goes as far as a start goes without reading weights: headers, configurations, the tokenizer, the model's own code on
no memory. What can only be known by computing (the memory of a step, the time between the services) it does not know.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fiddler import host_memory, tensors
from fiddler.checkpoint import Checkpoint
from gpu_service.calibration.measure import expert_bytes
from gpu_service.engine.kv_budget import AUTO_SHARE, GIB
from gpu_service.errors import FlagError
from gpu_service.gpu_experts.expert_slots import ExpertSlots
from gpu_service.gpu_experts.memory_budget import DeviceMemory, SlotNeeds, budget_bytes, parse_budget, slots_for
from gpu_service.model_runner.loading import (
    find_replacements,
    logging_of_transformers,
    read_config,
    read_generation_config,
)
from gpu_service.models.families import VERIFIED
from gpu_service.models.glossary import METHODS
from gpu_service.models.registry import architecture_of
from gpu_service.sampling.rules import check_generation_config
from gpu_service.settings import Settings
from gpu_service.startup import read_bandwidth
from gpu_service.startup.device_memory import device_of, experts_workspace_bytes
from gpu_service.startup.experts import NUM_STREAMING
from gpu_service.text.tokenizer import Tokenizer

_UNITS = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A checkpoint that can be served, and how."""

    checkpoint: Checkpoint
    experts_per_token: int
    """0 where the configuration does not say."""
    dtype: torch.dtype
    device: torch.device

    @property
    def num_experts(self) -> int:
        """In all layers."""
        return sum(layer.num_experts for layer in self.checkpoint.layers)

    @property
    def dense_bytes(self) -> int:
        """Of the dense weights in what is computed in; experts' dtype stands for theirs."""
        return self.checkpoint.dense_bytes * self.dtype.itemsize // self.checkpoint.expert_dtype.itemsize

    @property
    def expert_bytes_per_token(self) -> int:
        """Of the experts that one token is routed to."""
        layers = self.checkpoint.layers
        return self.experts_per_token * sum(expert_bytes(layer) for layer in layers)


def report(settings: Settings) -> list[str]:
    """The lines to print.

    Raises:
        UserError: It cannot be served; the text says why.
    """
    subject = examine(settings)
    resident = num_resident(subject, settings)
    lines = [*_weights(subject), *_memory(subject, resident), _speed(subject, resident)]
    return [f"{name + ':':10} {text}" for name, text in lines]


def examine(settings: Settings) -> Subject:
    """Makes sure that a start would not fail before it reads weights.

    Raises:
        UserError: It would.
    """
    logging_of_transformers()
    checkpoint = Checkpoint.open(settings.model)
    device = device_of(settings.device)
    config = read_config(checkpoint.directory)
    architecture = architecture_of(config.model_type)
    find_replacements(checkpoint, config, architecture)
    check_generation_config(checkpoint.directory, read_generation_config(checkpoint.directory, config))
    Tokenizer(checkpoint.directory)
    return Subject(
        checkpoint=checkpoint,
        experts_per_token=architecture.num_experts_per_token(config),
        dtype=tensors.resolve_dtype(settings.dtype, checkpoint.expert_dtype),
        device=device,
    )


def num_resident(subject: Subject, settings: Settings) -> int:
    """How many experts would lie on the device at the least: keys and values are taken to fill their share.

    Raises:
        FlagError: --gpu-expert-memory asks for more than there is, or the dense weights do not fit.
    """
    if settings.placement == "none":
        return 0
    memory = _memory_left(subject, settings)
    needs = SlotNeeds(ExpertSlots.slot_bytes(subject.checkpoint), NUM_STREAMING)
    return slots_for(budget_bytes(parse_budget(settings.gpu_expert_memory), memory, needs), needs, subject.num_experts)


def _memory_left(subject: Subject, settings: Settings) -> DeviceMemory:
    """Of the device, once the dense weights and the keys and values are in place."""
    if subject.device.type == "cpu":
        host = host_memory.measure()
        return DeviceMemory(host.total_bytes, max(0, host.free_bytes - subject.dense_bytes), 0, is_host=True)
    free, total = torch.cuda.mem_get_info(subject.device)
    if subject.dense_bytes > free:
        raise FlagError(f"--device: the dense weights take {_size(subject.dense_bytes)}, and {_size(free)} are free")
    free -= subject.dense_bytes
    kept = AUTO_SHARE * free if settings.kv_memory == "auto" else float(settings.kv_memory) * GIB
    num_tokens = max(settings.prefill_chunk, settings.max_slots)
    workspace_bytes = experts_workspace_bytes(
        subject.checkpoint.layers, subject.experts_per_token, num_tokens, subject.dtype.itemsize
    )
    return DeviceMemory(total, max(0, free - int(kept)), workspace_bytes)


def _weights(subject: Subject) -> list[tuple[str, str]]:
    checkpoint = subject.checkpoint
    layers = checkpoint.layers
    family = VERIFIED.get(checkpoint.model_type)
    how = f"verified against {METHODS[family.test].short}" if family else "not verified"
    counts = sorted({layer.num_experts for layer in layers})
    sizes = sorted({expert_bytes(layer) for layer in layers})
    wanted = f", {subject.experts_per_token} of them for each token" if subject.experts_per_token else ""
    stored = str(checkpoint.expert_dtype).removeprefix("torch.")
    return [
        ("model", str(checkpoint.directory)),
        ("family", f"{checkpoint.model_type}, {how}"),
        ("dense", _size(checkpoint.dense_bytes)),
        ("experts", f"{_size(checkpoint.expert_bytes)} in {stored}: {len(layers)} layers x {_span(counts, str)} of "
         f"{_span(sizes, _size)}{wanted}"),
    ]  # fmt: skip


def _memory(subject: Subject, resident: int) -> list[tuple[str, str]]:
    host = host_memory.measure()
    expert_bytes = subject.checkpoint.expert_bytes
    memory = f"{_size(expert_bytes)} of experts beside {_size(host.free_bytes)} that are free"
    if expert_bytes > host.free_bytes:
        memory += ": too little, so that experts would be read from the disk again and again"
    if subject.device.type == "cpu":
        return [("device", "the CPU, which computes experts where they lie"), ("memory", memory)]
    free, total = torch.cuda.mem_get_info(subject.device)
    name = torch.cuda.get_device_name(subject.device)
    share = f"at least {resident} of {subject.num_experts} experts" if resident else "no expert"
    return [
        ("device", f"{subject.device} ({name}), {_size(free)} of {_size(total)} free"),
        ("resident", f"{share}, and {_size(subject.dense_bytes)} of dense weights"),
        ("memory", memory),
    ]


def _speed(subject: Subject, resident: int) -> tuple[str, str]:
    """What reading weights allows: nothing that decodes one token at a time can be faster than that."""
    if not subject.experts_per_token:
        return "decode", "not known, since the configuration does not say how many experts a token is routed to"
    host = read_bandwidth.host_bytes_per_second()
    wanted = subject.expert_bytes_per_token
    if subject.device.type == "cpu":
        num_bytes = wanted + subject.dense_bytes
        return "decode", _rate(num_bytes / host, f"{_size(num_bytes)} of weights read at {host / 1e9:.3g} GB/s")
    device = read_bandwidth.device_bytes_per_second(subject.device)
    remote = wanted * (1 - resident / subject.num_experts)
    # both sides read at the same time, but for the dense weights
    seconds = subject.dense_bytes / device + max((wanted - remote) / device, remote / host)
    return "decode", _rate(
        seconds,
        f"{_size(int(remote))} of experts read from memory at {host / 1e9:.3g} GB/s, and "
        f"{_size(int(wanted - remote) + subject.dense_bytes)} on the device at {device / 1e9:.4g} GB/s, if all experts "
        "are chosen alike",
    )


def _rate(seconds: float, why: str) -> str:
    rate = 1 / seconds
    text = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
    return f"at most {text} tokens/s for one sequence: for each token {why}; bandwidth was measured just now"


def _span(values: list[int], text: Callable[[int], str]) -> str:
    return text(values[0]) if len(values) == 1 else f"{text(values[0])} to {text(values[-1])}"


def _size(num_bytes: int) -> str:
    for unit, name in _UNITS:
        if num_bytes >= unit:
            return f"{num_bytes / unit:.4g} {name}"
    return f"{num_bytes} bytes"
