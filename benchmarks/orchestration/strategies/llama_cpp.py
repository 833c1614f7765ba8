"""llama.cpp with experts on the CPU (github.com/ggml-org/llama.cpp: `--n-cpu-moe`, and ggml-cuda's offload_op)."""

from benchmarks.orchestration.batches import Routed
from benchmarks.orchestration.costs import System
from benchmarks.orchestration.strategies.server import Server
from gpu_service.placement.popularity import Popularity

_OFFLOAD_ROWS = 32
"""Batches from this size on are computed on the GPU, whatever the weights' place: ggml_backend_cuda's offload_op."""
_LAYER_LAUNCHES = 10
"""One kernel computes all experts of a product (mul_mat_id)."""

# Two layers of Mixtral's shape in BF16 on two cores of an Ice Lake Xeon, measured once by hand and not repeated by a
# benchmark: 114 ms a decoded token, of which 1.84 GB of weights are read, where a read loop did 27 GB/s; 60 tokens/s of
# a prompt of 512, at 1.84 GFLOP a token, where multiply-adds on registers did 292 GFLOP/s in float32.
_BANDWIDTH_SHARE = 1.84e9 / 0.114 / 27e9
_PEAK_SHARE = 1.84e9 * 60 / 292e9
_KERNEL_PEAK_SHARE = 0.6
"""What this repository's kernel is taken to reach of the same peak: see machines/*.json."""


class LlamaCpp(Server):
    """Whole layers of experts on the GPU, as many as fit; the others on the CPU, and one side waits for the other.

    A batch of 32 rows or more is computed on the GPU throughout: the experts that it uses (pull request 15346) are
    copied there first and not kept. Copies are taken to come from pinned memory (`--no-mmap`) and a prompt to be one
    batch (`-ub` as large as the prompt), the best that its flags allow. Operations are launched from C++, at half of
    eager PyTorch's time. Its CPU kernels are as fast as they were measured against this repository's.
    """

    name = "llama_cpp"

    def __init__(self, system: System, popularity: Popularity) -> None:
        super().__init__(system, popularity)
        self._layers_on_gpu = min(system.model.moe_layers, system.expert_slots // system.model.experts)
        self._launch_seconds = system.machine.launch_seconds / 2
        flops_share = _PEAK_SHARE / _KERNEL_PEAK_SHARE
        self._cpu = [system.cpu_seconds(rows, _BANDWIDTH_SHARE, flops_share) for rows in range(_OFFLOAD_ROWS)]

    def attention_seconds(self, rows: int, context: int) -> float:
        """See Server."""
        return self.system.attention_seconds(rows, context, self._launch_seconds)

    def experts(self, layer: int, routed: Routed) -> None:
        """See Server."""
        machine, model = self.system.machine, self.system.model
        self.wait("gpu", self.system.shared_seconds(routed.rows))
        if layer < self._layers_on_gpu:
            self.hits += len(routed.active)
        elif routed.rows >= _OFFLOAD_ROWS:
            # which experts are used must be known before they can be copied
            self.wait("host", machine.sync_seconds)
            self.copy_and_wait(len(routed.active) * model.expert_bytes)
        else:
            moved = 2 * routed.rows * model.row_bytes / machine.pcie_bytes_per_second
            self.wait("host", 2 * machine.sync_seconds + moved)
            self.wait("cpu", sum(self._cpu[count] for count in routed.counts))
            return
        products = sum(self.system.gpu_seconds(model.expert_parameters, routed.counts[e]) for e in routed.active)
        self.wait("gpu", max(products, _LAYER_LAUNCHES * self._launch_seconds))
