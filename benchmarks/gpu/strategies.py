"""Decode, first token and beams of the large model, with the strategies of this server and of others, run for real."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from typing_extensions import override

from benchmarks.gpu.results import Results
from benchmarks.gpu.setting import Setting
from fiddler.checkpoint import Checkpoint
from gpu_service.calibration.measure import calibrate, expert_bytes
from gpu_service.cpu_experts.backend import PendingOutput, RemoteExperts
from gpu_service.gpu_experts.expert_slots import ExpertSlots
from gpu_service.model_runner.forward_input import Logits
from gpu_service.model_runner.model import Model
from gpu_service.moe.dispatcher import Dispatcher
from gpu_service.moe.orchestrated import Orchestrated
from gpu_service.moe.prefetch import Prefetcher
from gpu_service.placement import policies
from gpu_service.planning.latency_model import LatencyModel
from tests.support.routes import FAST, SLOW, Route, use_route

_WARM_UP_TOKENS = 4
_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class Strategy:
    """How experts are placed and computed."""

    policy: str
    route: Route | None = None
    """Costs that force a route; None: the measured ones."""
    keeps: bool = True
    """Whether experts stay on the GPU."""
    prefetches: bool = False
    is_serial: bool = False
    """Whether the CPU's experts are waited for before the GPU begins its own."""


STRATEGIES: Final = {
    "ours": Strategy("adaptive", prefetches=True),
    "all_streamed": Strategy("none", Route(SLOW, FAST), keeps=False),
    "lru_streamed": Strategy("lru", Route(SLOW, FAST, "lru")),
    "static_layers": Strategy("layers", Route(FAST, SLOW, "layers")),
    "paper": Strategy("layers", is_serial=True),
}


class _Serial(RemoteExperts):
    """Waits for each answer before anything else is begun."""

    def __init__(self, inner: RemoteExperts) -> None:
        self._inner = inner

    @property
    @override
    def available(self) -> bool:
        return self._inner.available

    @override
    def submit(
        self,
        layer: int,
        hidden: torch.Tensor,
        *,
        expert_ids: torch.Tensor,
        routing_weights: torch.Tensor,
        timeout_seconds: float | None = None,
    ) -> PendingOutput:
        pending = self._inner.submit(
            layer,
            hidden,
            expert_ids=expert_ids,
            routing_weights=routing_weights,
            timeout_seconds=timeout_seconds,
        )
        return _Joined(pending.join(), pending.compute_seconds)


@dataclass(frozen=True)
class _Joined:
    output: torch.Tensor
    compute_seconds: float | None

    def join(self) -> torch.Tensor:
        return self.output


def measure(setting: Setting, results: Results, name: str) -> None:
    """Measures one strategy."""
    size = setting.size
    with served(setting, STRATEGIES[name]) as model:
        for length in size.prompts:
            results.samples(f"model.{name}.first_{length}", [_first_token(setting, model, length)], "s")
        steps = decode(setting, model, rows=1)
        results.samples(f"model.{name}.decode", [1 / seconds for seconds in steps], "tokens/s")
        for beams in size.beams:
            steps = decode(setting, model, rows=beams)
            results.samples(f"model.{name}.beams_{beams}", [1 / seconds for seconds in steps], "steps/s")
        results.record(f"graphs.{name}", used=model.uses_graphs)


@contextmanager
def served(setting: Setting, strategy: Strategy) -> Iterator[Model]:
    """The large model, whose experts are placed and computed as a strategy does."""
    checkpoint = Checkpoint.open(setting.write())
    size = setting.size
    with ExitStack() as stack:
        remote = stack.enter_context(setting.experts(checkpoint, setting.dtype))
        dispatcher = Dispatcher(checkpoint, setting.device, _Serial(remote) if strategy.is_serial else remote)
        model = Model(
            checkpoint,
            dispatcher,
            device=setting.device,
            dtype=setting.dtype,
            num_rows=max(size.beams),
            max_context=size.max_context,
            uses_graphs=True,
        )
        num_experts = [layer.num_experts for layer in checkpoint.layers]
        capacity = round(sum(num_experts) * size.resident_share) if strategy.keeps else 0
        slots = ExpertSlots(checkpoint, setting.device, capacity)
        stack.callback(slots.close)
        prefetcher = Prefetcher(model.routers if strategy.prefetches else {}, slots, always=False)
        if strategy.route is not None:
            most = max(size.prompts)
            use_route(dispatcher, checkpoint, slots, strategy.route, prefetcher=prefetcher, max_rows=most)
        else:
            _use_measured(model, checkpoint, slots, remote, strategy=strategy, prefetcher=prefetcher, setting=setting)
        yield model


def _use_measured(
    model: Model,
    checkpoint: Checkpoint,
    slots: ExpertSlots,
    remote: RemoteExperts,
    *,
    strategy: Strategy,
    prefetcher: Prefetcher,
    setting: Setting,
) -> None:
    most, k = max(setting.size.prompts), model.num_experts_per_token
    measured = calibrate(
        checkpoint,
        remote,
        dtype=setting.dtype,
        max_rows=most,
        experts_per_row=k,
        slots=slots,
        device=setting.device,
    )
    layer_bytes = [expert_bytes(layer) for layer in checkpoint.layers]
    latency = LatencyModel(measured, layer_bytes, most, experts_per_row=k)
    num_experts = [layer.num_experts for layer in checkpoint.layers]
    inputs = policies.Inputs(
        num_experts=num_experts, capacity=slots.capacity, popularity=None, costs=lambda: latency.costs(0)
    )
    placement = policies.build(strategy.policy, inputs)
    slots.load(placement.initial())
    model.dispatcher.use(
        Orchestrated(
            latency=latency,
            slots=slots,
            placement=placement,
            prefetcher=prefetcher,
            timeout_cap_seconds=_TIMEOUT_SECONDS,
        )
    )


def _first_token(setting: Setting, model: Model, length: int) -> float:
    """Seconds of a prompt that is computed at once, until its first token is known."""
    tokens = torch.randint(3, model.vocab_size, (1, length))
    began = time.perf_counter()
    with torch.inference_mode():
        model.forward(tokens, torch.arange(length)[None], first_row=0, wants=Logits.LAST).argmax().item()
    setting.synchronize()
    return time.perf_counter() - began


def decode(setting: Setting, model: Model, rows: int) -> list[float]:
    """Seconds of each step of so many rows, after the shortest prompt and some steps that are not counted."""
    seconds = []
    start = min(setting.size.prompts)
    tokens = torch.arange(3, 3 + rows)[:, None]
    with torch.inference_mode():
        warm_up = _WARM_UP_TOKENS if setting.is_real else 0
        for step in range(warm_up + setting.size.num_tokens):
            began = time.perf_counter()
            positions = torch.full((rows, 1), start + step)
            logits = model.forward(tokens, positions, first_row=0, wants=Logits.LAST)
            tokens = logits.argmax(dim=-1)[:, None].cpu()
            if step >= warm_up:
                seconds.append(time.perf_counter() - began)
    return seconds
