"""Seconds of each piece of work on a machine, by roofline: the larger of bytes over bandwidth and operations over rate.

These are the costs that a calibration of the service would find on an idle machine. link.py has the slowdown of work
that overlaps.
"""

from dataclasses import dataclass
from functools import cached_property

from benchmarks.orchestration.machines import Machine
from benchmarks.orchestration.models import BYTES_PER_VALUE, Model
from gpu_service.planning.latency_model import Costs

MAX_ROWS = 4096

_MEMORY_SHARE = 0.95
"""Share of the GPU's memory that is used, as in Fiddler's released code."""
_WORKSPACE_BYTES = 1e9
"""Activations, logits, libraries; assumed."""
_CACHE_TOKENS = 8192
"""Keys and values: 16 beams of 512 tokens, or two prompts of 4096."""
_MOST_BEAMS = 16
"""A step with more rows is a prompt, whose rows share one cache."""
_ATTENTION_LAUNCHES = 30
"""Eager operations of one layer without its experts: norms, projections, rotation, cache, attention, router."""
_EXPERT_LAUNCHES = 8
"""Gather, three products, activation, product, weights, add."""


@dataclass(frozen=True)
class System:
    """A model on a machine."""

    machine: Machine
    model: Model

    @cached_property
    def expert_slots(self) -> int:
        """Experts that fit on the GPU alongside everything else."""
        total = self.model.moe_layers * self.model.experts
        if self.model.resident_share:
            return int(total * self.model.resident_share)
        free = _MEMORY_SHARE * self.machine.gpu_budget_bytes - self.model.dense_bytes - _WORKSPACE_BYTES
        free -= _CACHE_TOKENS * self.model.kv_bytes_per_token
        return max(0, min(total, int(free // self.model.expert_bytes)))

    @cached_property
    def transfer_seconds(self) -> float:
        """Copying one expert from pinned memory."""
        return self.model.expert_bytes / self.machine.pcie_bytes_per_second

    @cached_property
    def row_seconds(self) -> float:
        """Each additional row in a message: to the host, through the socket, and back."""
        both_ways = 2 * self.model.row_bytes
        return both_ways / self.machine.hop_bytes_per_second + both_ways / self.machine.pcie_bytes_per_second

    def gpu_seconds(self, parameters: float, rows: int, launches: int = 0) -> float:
        """A product of `rows` rows with weights in the GPU's memory, in `launches` eager operations."""
        if not rows:
            return 0.0
        read = parameters * BYTES_PER_VALUE / self.machine.gpu_bytes_per_second
        compute = 2 * parameters * rows / self.machine.gpu_bf16_flops
        return max(read, compute, launches * self.machine.launch_seconds)

    def cpu_seconds(self, rows: int, bandwidth_share: float = 1.0, flops_share: float = 1.0) -> float:
        """One expert on the CPU. The shares are relative to this repository's kernel."""
        if not rows:
            return 0.0
        read = self.model.expert_bytes / (self.machine.cpu_bytes_per_second * bandwidth_share)
        return max(read, 2 * self.model.expert_parameters * rows / (self.machine.cpu_flops * flops_share))

    def expert_gpu_seconds(self, rows: int) -> float:
        """One expert on the GPU, operation by operation."""
        return self.gpu_seconds(self.model.expert_parameters, rows, _EXPERT_LAUNCHES)

    def attention_seconds(self, rows: int, context: int, launch_seconds: float | None = None) -> float:
        """One layer without its experts.

        Args:
            rows: Tokens to compute.
            context: Tokens that the last of them attends to, itself included.
            launch_seconds: Host time of one operation. None: eager PyTorch's.
        """
        launch = self.machine.launch_seconds if launch_seconds is None else launch_seconds
        products = self.gpu_seconds(self.model.layer_parameters, rows)
        sequences = 1 if rows > _MOST_BEAMS else rows
        cache = sequences * context * self.model.kv_values * BYTES_PER_VALUE / self.machine.gpu_bytes_per_second
        attended = rows * context if sequences == rows else rows * (context - rows / 2)
        scores = 4 * attended * self.model.attention_width / self.machine.gpu_bf16_flops
        return max(products + max(cache, scores), _ATTENTION_LAUNCHES * launch)

    def ends_seconds(self, rows: int, sequences: int) -> float:
        """Once for each step: the head, and the layers without experts except for their attention."""
        dense = self.gpu_seconds(self.model.dense_mlp_parameters, rows)
        return dense + self.gpu_seconds(self.model.head_parameters, sequences)

    def shared_seconds(self, rows: int) -> float:
        """The shared experts of one layer."""
        if not self.model.shared_parameters:
            return 0.0
        return self.gpu_seconds(self.model.shared_parameters, rows, _EXPERT_LAUNCHES)

    @cached_property
    def costs(self) -> Costs:
        """The planner's costs, as a calibration would find them."""
        return Costs(
            cpu=[self.cpu_seconds(rows) for rows in range(MAX_ROWS + 1)],
            gpu=[self.expert_gpu_seconds(rows) for rows in range(MAX_ROWS + 1)],
            transfer=self.transfer_seconds,
            round_trip=self.machine.round_trip_seconds,
            row=self.row_seconds,
            experts_per_row=self.model.top_k,
        )
