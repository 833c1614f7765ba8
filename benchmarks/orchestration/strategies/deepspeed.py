"""DeepSpeed ZeRO-Inference (Aminabadi et al., arXiv 2207.00032, section 6; deepspeed.ai, ZeRO-Inference)."""

from benchmarks.orchestration.batches import Routed
from benchmarks.orchestration.models import BYTES_PER_VALUE
from benchmarks.orchestration.strategies.server import Server


class DeepSpeed(Server):
    """Streams every layer's weights for every forward and computes on the GPU, the next layer's copy beside it.

    All parameters lie in pinned host memory, dense ones too, and nothing is kept. An MoE block is fetched whole, with
    the experts that nobody asked for: ZeRO-3 knows modules, and DeepSpeed's documentation makes an MoE block a leaf
    module (set_z3_leaf_modules), as Fiddler's authors did (their benchmarks/eval-baseline.py). The copies run ahead of
    the computation without a limit, which is kind to it.
    """

    name = "deepspeed"

    def begin_step(self) -> None:
        """See Server."""
        self._landed = self.now

    def attend(self, seconds: float) -> None:
        """See Server."""
        self._fetch(self.system.model.layer_parameters)
        super().attend(seconds)

    def experts(self, layer: int, routed: Routed) -> None:
        """See Server."""
        model = self.system.model
        self._fetch(model.experts * model.expert_parameters + model.shared_parameters)
        self.wait("gpu", self.system.shared_seconds(routed.rows))
        self.wait("gpu", sum(self.system.costs.gpu[count] for count in routed.counts if count))

    def end_step(self) -> None:
        """See Server."""
        # the row of the embedding, the head, and a dense layer's products, in no order that matters
        self._fetch(self.system.model.head_parameters + self.system.model.dense_mlp_parameters)

    def _fetch(self, parameters: float) -> None:
        """Waits for weights; the link is busy with nothing but one copy after another."""
        num_bytes = parameters * BYTES_PER_VALUE
        self._landed += num_bytes / self.link.bytes_per_second
        self.link.occupy(self._landed, num_bytes)
        self.wait("copies", max(0.0, self._landed - self.now))
