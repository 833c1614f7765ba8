"""DeepSpeed ZeRO-Inference (Aminabadi et al., arXiv 2207.00032, section 6; deepspeed.ai, ZeRO-Inference)."""

from typing_extensions import override

from benchmarks.orchestration.batches import Routed
from benchmarks.orchestration.models import BYTES_PER_VALUE
from benchmarks.orchestration.strategies.server import Server


class DeepSpeed(Server):
    """Streams every layer's weights for every forward, and computes on the GPU while the next layer is copied.

    All parameters, also the dense ones, are in pinned host memory, and nothing stays on the GPU. An MoE block is
    fetched whole, with the experts that no token chose: ZeRO-3 works on modules, and DeepSpeed's documentation makes an
    MoE block a leaf module (set_z3_leaf_modules), as Fiddler's authors did (their benchmarks/eval-baseline.py). Copies
    run ahead of the computation without a limit, which favours it.
    """

    name = "deepspeed"

    @override
    def begin_step(self) -> None:
        self._landed = self.now

    @override
    def attend(self, seconds: float) -> None:
        self._fetch(self.system.model.layer_parameters)
        super().attend(seconds)

    @override
    def experts(self, layer: int, routed: Routed) -> None:
        model = self.system.model
        self._fetch(model.experts * model.expert_parameters + model.shared_parameters)
        self.wait("gpu", self.system.shared_seconds(routed.rows))
        self.wait("gpu", sum(self.system.costs.gpu[count] for count in routed.counts if count))

    @override
    def end_step(self) -> None:
        # the embedding's row, the head and the dense layers; their order does not matter
        self._fetch(self.system.model.head_parameters + self.system.model.dense_mlp_parameters)

    def _fetch(self, parameters: float) -> None:
        """Waits for weights. The link copies them one after the other."""
        num_bytes = parameters * BYTES_PER_VALUE
        self._landed += num_bytes / self.link.bytes_per_second
        self.link.occupy(self._landed, num_bytes)
        self.wait("copies", max(0.0, self._landed - self.now))
