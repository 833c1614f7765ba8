"""Fiddler's published algorithm (arXiv 2402.07033, algorithm 1; github.com/efeslab/fiddler, src/fiddler/mixtral.py)."""

from typing_extensions import override

from benchmarks.orchestration.batches import Routed
from benchmarks.orchestration.costs import System
from benchmarks.orchestration.strategies.server import Server, most_popular
from gpu_service.placement.popularity import Popularity


class Fiddler(Server):
    """The algorithm with this repository's kernels and pinned copies, so that only the orchestration differs.

    The most popular experts are always resident on the GPU. Each of the others is computed where it is cheaper by
    itself, on the CPU or after a copy: the released code tries all splits for the least sum of costs, with the same
    result. Everything runs in sequence: the GPU's experts, each copied and computed before the next, then the CPU's,
    each with its own transfers. There is no second process and no hop. One slot is kept free for copies.
    """

    name = "fiddler"

    def __init__(self, system: System, popularity: Popularity) -> None:
        super().__init__(system, popularity)
        self._resident = most_popular(popularity, system.expert_slots - 1)
        self._cpu = system.costs.cpu
        self._gpu = system.costs.gpu

    @override
    def experts(self, layer: int, routed: Routed) -> None:
        machine, model = self.system.machine, self.system.model
        self.wait("gpu", self.system.shared_seconds(routed.rows))
        self.wait("host", machine.sync_seconds)
        for expert in routed.active:
            rows = routed.counts[expert]
            if (layer, expert) in self._resident:
                self.hits += 1
                self.wait("gpu", self._gpu[rows])
            elif self.stream_seconds() + self._gpu[rows] < self._cpu[rows]:
                self.stream()
                self.wait("gpu", self._gpu[rows])
            else:
                moved = 2 * rows * model.row_bytes / machine.pcie_bytes_per_second
                self.wait("host", 2 * machine.sync_seconds + moved)
                self.wait("cpu", self._cpu[rows])

    def stream_seconds(self) -> float:
        """Seconds of one expert's copy."""
        return self.system.transfer_seconds

    def stream(self) -> None:
        """Copies one expert into the free slot."""
        self.copy_and_wait(self.system.model.expert_bytes)


class FiddlerAsReleased(Fiddler):
    """The same with the two costs that the released code has as constants, measured by its authors.

    They are 7 ms for each row on the CPU, in PyTorch's bfloat16, and 70 ms for an expert that is not on the GPU and is
    copied from pageable memory. Only the comparison with the paper uses this strategy.
    """

    name = "fiddler_as_released"
    _CPU_ROW_SECONDS = 7e-3
    _GPU_SECONDS = 70e-3

    def __init__(self, system: System, popularity: Popularity) -> None:
        super().__init__(system, popularity)
        self._cpu = [rows * self._CPU_ROW_SECONDS for rows in range(len(self._cpu))]

    @override
    def stream_seconds(self) -> float:
        return self._GPU_SECONDS

    @override
    def stream(self) -> None:
        self.link.occupy(self.now + self._GPU_SECONDS, self.system.model.expert_bytes)
        self.wait("copies", self._GPU_SECONDS)
