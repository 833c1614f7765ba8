"""llama.cpp with experts on the CPU (github.com/ggml-org/llama.cpp: `--n-cpu-moe`, and ggml-cuda's offload_op)."""

from typing_extensions import override

from benchmarks.orchestration.batches import Routed
from benchmarks.orchestration.costs import System
from benchmarks.orchestration.strategies.server import Server
from gpu_service.placement.popularity import Popularity

_OFFLOAD_ROWS = 32
"""Batches of this size or more are computed on the GPU, wherever the weights are: ggml_backend_cuda's offload_op."""
_LAYER_LAUNCHES = 10
"""One kernel computes all experts of a product (mul_mat_id)."""

# Measured once by hand, and not repeated by a benchmark: two layers of Mixtral's shape in BF16 on two cores of an Ice
# Lake Xeon. A decoded token takes 114 ms and reads 1.84 GB of weights, while a read loop reaches 27 GB/s. A prompt of
# 512 runs at 60 tokens/s and 1.84 GFLOP a token, while multiply-adds on registers reach 292 GFLOP/s in float32.
_BANDWIDTH_SHARE = 1.84e9 / 0.114 / 27e9
_PEAK_SHARE = 1.84e9 * 60 / 292e9
_KERNEL_PEAK_SHARE = 0.6
"""The share of the same peak that this repository's kernel is assumed to reach: see machines/*.json."""


class LlamaCpp(Server):
    """As many whole layers of experts on the GPU as fit, the others on the CPU; one side waits for the other.

    A batch of 32 rows or more is computed on the GPU throughout: the experts that it uses (pull request 15346) are
    copied there first and not kept. Copies are assumed to come from pinned memory (`--no-mmap`) and a prompt to be one
    batch (`-ub` as large as the prompt), the best that its flags allow. Launching an operation from C++ is assumed to
    take half of eager PyTorch's time. Its CPU kernels have the speed that was measured relative to this repository's.
    """

    name = "llama_cpp"

    def __init__(self, system: System, popularity: Popularity) -> None:
        super().__init__(system, popularity)
        self._layers_on_gpu = min(system.model.moe_layers, system.expert_slots // system.model.experts)
        self._launch_seconds = system.machine.launch_seconds / 2
        flops_share = _PEAK_SHARE / _KERNEL_PEAK_SHARE
        self._cpu = [system.cpu_seconds(rows, _BANDWIDTH_SHARE, flops_share) for rows in range(_OFFLOAD_ROWS)]

    @override
    def attention_seconds(self, rows: int, context: int) -> float:
        return self.system.attention_seconds(rows, context, self._launch_seconds)

    @override
    def experts(self, layer: int, routed: Routed) -> None:
        machine, model = self.system.machine, self.system.model
        self.wait("gpu", self.system.shared_seconds(routed.rows))
        if layer < self._layers_on_gpu:
            self.hits += len(routed.active)
        elif routed.rows >= _OFFLOAD_ROWS:
            # the experts that are used must be known before they can be copied
            self.wait("host", machine.sync_seconds)
            self.copy_and_wait(len(routed.active) * model.expert_bytes)
        else:
            moved = 2 * routed.rows * model.row_bytes / machine.pcie_bytes_per_second
            self.wait("host", 2 * machine.sync_seconds + moved)
            self.wait("cpu", sum(self._cpu[count] for count in routed.counts))
            return
        products = sum(self.system.gpu_seconds(model.expert_parameters, routed.counts[e]) for e in routed.active)
        self.wait("gpu", max(products, _LAYER_LAUNCHES * self._launch_seconds))
