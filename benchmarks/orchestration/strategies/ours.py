"""This repository's server: its own planner and placement policies, and the dispatcher's order of events."""

from dataclasses import dataclass
from functools import partial

from typing_extensions import override

from benchmarks.orchestration.batches import Routed
from benchmarks.orchestration.costs import MAX_ROWS, System
from benchmarks.orchestration.link import overlap
from benchmarks.orchestration.strategies.server import Server
from gpu_service.gpu_experts.keys import ExpertKey
from gpu_service.gpu_experts.lanes import chunk_bytes
from gpu_service.placement import policies
from gpu_service.placement.popularity import Popularity
from gpu_service.planning import planner
from gpu_service.planning.latency_model import Costs, LatencyModel, Measurements
from gpu_service.planning.planner import Plan
from gpu_service.settings import Settings
from gpu_service.startup.chunks import CHUNK_ALONE

_STREAMING_SLOTS = 2
_SWAPS_PER_STEP = 1
_CACHED_STAGING_BYTES = 16 * 2**20
"""Two staging buffers of no more than this in all stay in the last-level cache, which is larger on every machine."""
_PLANNING_SECONDS = 50e-6 / 128
"""For each active expert: the planner's target."""


@dataclass(slots=True)
class _Remote:
    """The CPU's side of one layer."""

    one_way_seconds: float
    """One way of one message."""
    cpu_seconds: float
    """Of all messages if nothing else reads the memory."""
    memory_share: float
    """Share of the memory's bandwidth that the CPU uses while it computes."""
    num_messages: int

    def seconds(self, cpu_seconds: float) -> float:
        """Seconds until the last answer if computing takes `cpu_seconds`: a pipeline of request, computing, answer."""
        computing = cpu_seconds / self.num_messages
        return 2 * self.one_way_seconds + computing + (self.num_messages - 1) * max(self.one_way_seconds, computing)


class Ours(Server):
    """Plans each layer for the least max(CPU's side, GPU's side) and runs both sides at once.

    The request to the CPU is sent first; resident and shared experts run meanwhile, then the streamed ones as they
    land. No other request is served, so a prompt has the default chunk size of one that is alone. The policy swaps at
    most one expert for each step in the background. The planner starts with the costs that a calibration finds on the
    idle machine, and the latency model corrects them by the actual time of each message and copy. Effects that these
    costs do not contain are simulated: a copy goes through a staging buffer and takes memory bandwidth from the CPU's
    experts, the GPU waits for each copy in turn, and experts share the rows of a message. Prefetching is left out,
    since traces do not contain a router's guesses.
    """

    name = "ours"
    policy = "adaptive"
    prompt_chunk: int | None = CHUNK_ALONE

    def __init__(self, system: System, popularity: Popularity) -> None:
        super().__init__(system, popularity)
        machine, model = system.machine, system.model
        # for each byte: one read into the staging buffer, and if that exceeds the cache, a write and another read
        traffic = 1 if 2 * chunk_bytes(model.expert_bytes) <= _CACHED_STAGING_BYTES else 3
        self.link.bytes_per_second = min(machine.pcie_bytes_per_second, machine.cpu_bytes_per_second / traffic)
        self._copy_share = traffic * self.link.bytes_per_second / machine.cpu_bytes_per_second
        self._latency = _calibrate(system, model.expert_bytes / self.link.bytes_per_second)
        num_experts = [model.experts] * model.moe_layers
        everything_fits = system.expert_slots == sum(num_experts)
        capacity = system.expert_slots - (0 if everything_fits else min(_STREAMING_SLOTS, system.expert_slots))
        inputs = policies.Inputs(
            num_experts=num_experts, capacity=capacity, popularity=popularity, costs=lambda: self._latency.costs(0)
        )
        self._placement = policies.build(self.policy, inputs)
        self._taken: set[ExpertKey] = set(self._placement.initial())
        """Experts that hold a slot."""
        self._ready: list[set[int]] = [set() for _ in num_experts]
        """By layer, the experts whose weights have landed."""
        for layer, expert in self._taken:
            self._ready[layer].add(expert)

    @override
    def experts(self, layer: int, routed: Routed) -> None:
        machine = self.system.machine
        self.wait("host", machine.sync_seconds + _PLANNING_SECONDS * len(routed.active))
        self.link.advance(self.now)
        ready = self._ready[layer]
        self.hits += sum(expert in ready for expert in routed.active)
        costs = self._latency.costs(layer)
        plan = planner.plan(routed.counts, ready, costs, pending=self.link.pending(layer))
        self._placement.observe(layer, routed.counts)
        remote = self._remote(routed, plan, costs)
        self._run(routed, plan, remote, self._copies(layer, plan))
        self.wait("host", machine.launch_seconds)

    @override
    def end_step(self) -> None:
        self.link.advance(self.now)
        room = _SWAPS_PER_STEP - self.link.num_background
        for swap in self._placement.swaps(self._taken, room) if room > 0 else ():
            if swap.evict:
                self._drop(swap.evict)
            self._taken.add(swap.load)
            layer, expert = swap.load
            self.link.in_background(swap.load, self.system.model.expert_bytes, partial(self._ready[layer].add, expert))

    def _copies(self, layer: int, plan: Plan) -> list[float]:
        """Bytes to copy for each streamed expert. Those that stay take slots."""
        copies: list[float] = []
        for expert in plan.streamed:
            key = (layer, expert)
            if key in self._taken:
                copies.append(self.link.claim(key))
                continue
            copies.append(self.system.model.expert_bytes)
            victim = self._placement.victim(key, self._taken)
            if victim:
                self._drop(victim)
                self._taken.add(key)
                self._ready[layer].add(expert)
        return copies

    def _drop(self, key: ExpertKey) -> None:
        self._taken.discard(key)
        self._ready[key[0]].discard(key[1])

    def _run(self, routed: Routed, plan: Plan, remote: _Remote, copies: list[float]) -> None:
        """Moves the clock to the end of the slower side, and accounts for what it waited for."""
        began = self.link.demand_begins(self.now) if copies else self.now
        # background copies use memory bandwidth, too
        copying = sum(copies) / self.link.bytes_per_second or self.link.background_seconds
        memory = overlap(
            first_seconds=remote.cpu_seconds,
            first_share=remote.memory_share,
            second_seconds=copying,
            second_share=self._copy_share if copying else 0.0,
        )
        cpu_end = self.now
        if plan.remote:
            cpu_end += remote.seconds(memory.end(remote.cpu_seconds))
            self._latency.observe_cpu(plan.remote_seconds, cpu_end - self.now)
        gpu, resident = self.system.costs.gpu, [routed.counts[expert] for expert in plan.resident]
        gpu_end = self.now + self.system.shared_seconds(routed.rows) + sum(gpu[count] for count in resident)
        landed, alone, waited = began, 0.0, 0.0
        for expert, num_bytes in zip(plan.streamed, copies, strict=True):
            seconds, before = num_bytes / self.link.bytes_per_second, landed
            alone += seconds
            landed = began + memory.end(alone)
            self._latency.observe_transfer(seconds * self._latency.transfer_correction.factor, landed - before)
            waited += max(0.0, landed - gpu_end)
            gpu_end = max(gpu_end, landed) + gpu[routed.counts[expert]]
        if copies:
            self.link.occupy(landed, sum(copies))
        if cpu_end > gpu_end:
            self.wait("hop", 2 * remote.one_way_seconds)
            self.wait("cpu", cpu_end - self.now)
        else:
            self.wait("copies", waited)
            self.wait("gpu", gpu_end - self.now)

    def _remote(self, routed: Routed, plan: Plan, costs: Costs) -> _Remote:
        """The actual cost of the CPU's side, for the planner's number of messages."""
        if not plan.remote:
            return _Remote(0.0, 0.0, 0.0, 1)
        rows = num_messages = 1
        if routed.rows > 1:
            ids = routed.ids_of(plan.remote)
            rows, num_messages = len(ids), planner.chunks(ids, costs)
        cpu, expert_bytes = self.system.costs.cpu, self.system.model.expert_bytes
        counts = [routed.counts[expert] for expert in plan.remote]
        # every message reads the weights of its experts again
        seconds = num_messages * sum(cpu[-(-count // num_messages)] for count in counts)
        read = num_messages * len(counts) * expert_bytes / self.system.machine.cpu_bytes_per_second
        one_way = (self.system.machine.round_trip_seconds + rows / num_messages * self.system.row_seconds) / 2
        return _Remote(one_way, seconds, min(1.0, read / seconds), num_messages)


def _calibrate(system: System, transfer_seconds: float) -> LatencyModel:
    """The result of the service's calibration on the idle machine."""
    rows = [2**power for power in range(MAX_ROWS.bit_length())]
    hop = [(count, system.machine.round_trip_seconds + count * system.row_seconds) for count in (1, MAX_ROWS)]
    measurements = Measurements(
        system.model.expert_bytes,
        cpu=tuple((count, system.costs.cpu[count]) for count in rows),
        hop=tuple(hop),
        gpu=tuple((count, system.costs.gpu[count]) for count in rows),
        transfer=(transfer_seconds,),
    )
    layer_bytes = [system.model.expert_bytes] * system.model.moe_layers
    return LatencyModel(measurements, layer_bytes, MAX_ROWS, experts_per_row=system.model.top_k)


class OursBesideOthers(Ours):
    """The same with the chunk size of prompts alongside other requests, whose steps in between are not counted."""

    name = "ours_beside_others"
    prompt_chunk = Settings.model_fields["prefill_chunk"].default


class OursPopularity(Ours):
    """The same with the most popular experts always resident."""

    name = "ours_popularity"
    policy = "popularity"


class OursLru(Ours):
    """The same with an LRU cache: streamed experts stay."""

    name = "ours_lru"
    policy = "lru"


class OursLayers(Ours):
    """The same with all experts of the first layers resident."""

    name = "ours_layers"
    policy = "layers"


class OursNone(Ours):
    """The same with nothing resident."""

    name = "ours_none"
    policy = "none"
