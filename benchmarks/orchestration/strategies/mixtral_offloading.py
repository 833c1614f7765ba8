"""mixtral-offloading (Eliseev and Mazur, arXiv 2312.17238; dvmazur/mixtral-offloading, src/expert_cache.py)."""

from collections import OrderedDict

from typing_extensions import override

from benchmarks.orchestration.batches import Routed
from benchmarks.orchestration.costs import System
from benchmarks.orchestration.strategies.server import Server
from gpu_service.placement.popularity import Popularity

_BUFFERS = 4


class MixtralOffloading(Server):
    """An LRU cache of experts for each layer; a missing expert is always copied to the GPU.

    Every layer caches the same number of experts, and four buffers are kept for copies. A miss swaps: the missing
    expert is copied in from pinned memory and the evicted one is written back, both on the stream that also computes,
    so nothing overlaps. The published version quantises the experts to 2 or 3 bits; here they are bfloat16, as in the
    comparison by Fiddler's authors (their benchmarks/eval-baseline.py: `quantized = False`). The paper's prediction of
    the next layer's experts is not in its released code.
    """

    name = "mixtral_offloading"

    def __init__(self, system: System, popularity: Popularity) -> None:
        super().__init__(system, popularity)
        model = system.model
        self._slots = max(1, (system.expert_slots - _BUFFERS) // model.moe_layers)
        self._cached = [OrderedDict.fromkeys(range(min(self._slots, model.experts))) for _ in range(model.moe_layers)]

    @override
    def experts(self, layer: int, routed: Routed) -> None:
        cached, gpu = self._cached[layer], self.system.costs.gpu
        self.wait("gpu", self.system.shared_seconds(routed.rows))
        self.wait("host", self.system.machine.sync_seconds)
        here = [expert for expert in routed.active if expert in cached]
        self.hits += len(here)
        for expert in here:
            cached.move_to_end(expert)
        missing = [expert for expert in routed.active if expert not in here]
        for expert in missing:
            cached.popitem(last=False)
            cached[expert] = None
        num_bytes = len(missing) * self.system.model.expert_bytes
        self.copy_and_wait(num_bytes)
        self.wait("copies", len(missing) * self.system.transfer_seconds)
        self.written_bytes += num_bytes
        self.wait("gpu", sum(gpu[routed.counts[expert]] for expert in routed.active))
