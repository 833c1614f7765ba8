"""How long each way to compute an expert takes: the costs that the planner reads, corrected while the service runs.

Nothing is measured here: calibration measures once, and the timings of every layer correct the result from then on.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from gpu_service.planning.curve import Curve, Sample, medians

_GREATEST_CORRECTION = math.log(8)
"""The bound on a correction, either way."""
_WEIGHT = 0.02
"""The weight of the newest timing: a change of the machine takes effect after about a hundred messages."""
_GREATEST_SURPRISE = math.log(2)
"""A timing that is further off than this counts as if it were off by this."""
_WORTH_A_SNAPSHOT = math.log(1.05)
"""By how much a correction must have moved before the costs are tabulated again."""
_TIMEOUT_FACTOR = 20.0
_LEAST_TIMEOUT_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Costs:
    """What the planner reads: an immutable snapshot for one layer, tabulated by the rows of one expert."""

    cpu: Sequence[float]
    """cpu[n]: seconds of one expert with n rows in the CPU expert service. cpu[0] is 0, and the table never falls."""
    gpu: Sequence[float]
    """gpu[n]: the same on the GPU, for an expert whose weights are there."""
    transfer: float
    """Seconds to copy one expert to the GPU. Infinite if nothing can be copied."""
    round_trip: float
    """Seconds of a message to the CPU expert service and back, without computing. Infinite without a service."""
    row: float
    """Additional seconds for each row of a message, both ways."""
    experts_per_row: int = 1
    """How many experts a row is routed to, wherever they are computed."""
    remote: Sequence[float] = field(init=False, repr=False, compare=False)
    """remote[n]: seconds that one expert with n rows adds to a message: its computing, and the transport of its rows.

    A row travels once, however many of its experts are remote. How many are remote is known only after the plan; half
    of them is assumed, which is within a factor of two of most plans.
    """

    def __post_init__(self) -> None:
        row = self.row / max(1.0, self.experts_per_row / 2)
        object.__setattr__(self, "remote", [seconds + row * rows for rows, seconds in enumerate(self.cpu)])

    def without_cpu(self) -> "Costs":
        """Returns the costs without a CPU expert service."""
        return self._with("round_trip", math.inf)

    def without_transfer(self) -> "Costs":
        """Returns the costs while nothing can be copied."""
        return self._with("transfer", math.inf)

    def _with(self, name: str, value: float) -> "Costs":
        """Shares the tables: dataclasses.replace would compute one again, for every layer."""
        other = object.__new__(Costs)
        for slot in Costs.__slots__:
            object.__setattr__(other, slot, value if slot == name else getattr(self, slot))
        return other


@dataclass(frozen=True, slots=True)
class Measurements:
    """What calibration measured: raw timings."""

    expert_bytes: int
    """Bytes of the experts that were measured; the costs of other layers are in proportion."""
    cpu: tuple[Sample, ...]
    """One expert in the CPU expert service, without the hop."""
    hop: tuple[Sample, ...]
    """Messages that compute nothing, of one row and of many."""
    gpu: tuple[Sample, ...] = ()
    """One expert on the device, with its weights there. Empty if no expert is ever there."""
    transfer: tuple[float, ...] = ()
    """Seconds to copy one expert. Empty if none can be copied."""


class Correction:
    """A factor that follows actual over predicted seconds, slowly and within bounds. One thread observes."""

    def __init__(self) -> None:
        self._log = 0.0  # the running mean of what was observed
        self._applied_log = 0.0  # what the predictions include

    @property
    def factor(self) -> float:
        """By what measured seconds are to be multiplied."""
        return math.exp(self._log)

    @property
    def is_due(self) -> bool:
        """Whether it has moved so far that predictions should be recomputed."""
        return abs(self._log - self._applied_log) > _WORTH_A_SNAPSHOT

    def apply(self) -> float:
        """Returns the factor, which predictions include from now on."""
        self._applied_log = self._log
        return self.factor

    def observe(self, predicted_seconds: float, actual_seconds: float) -> None:
        """Learns from one timing and its prediction, if both are finite and above 0."""
        if not (0.0 < predicted_seconds < math.inf and 0.0 < actual_seconds < math.inf):
            return
        surprise = math.log(actual_seconds / predicted_seconds) + self._applied_log - self._log
        surprise = max(-_GREATEST_SURPRISE, min(surprise, _GREATEST_SURPRISE))
        self._log = max(-_GREATEST_CORRECTION, min(self._log + _WEIGHT * surprise, _GREATEST_CORRECTION))


class LatencyModel:
    """The costs of every layer: measurements, corrected by the timings of real messages and copies.

    `costs` and `observe_cpu` are for one thread; `observe_transfer` may be called from another.
    """

    def __init__(
        self, measurements: Measurements, layer_bytes: Sequence[int], max_rows: int, *, experts_per_row: int = 1
    ) -> None:
        """Fits the curves.

        Args:
            measurements: What was measured.
            layer_bytes: Bytes of one expert, by layer.
            max_rows: The most rows of one expert.
            experts_per_row: How many experts a row is routed to.
        """
        self._layer_bytes = layer_bytes
        self._scales = {layer: layer / measurements.expert_bytes for layer in layer_bytes}
        self.cpu = Curve(measurements.cpu)
        self.gpu = Curve(measurements.gpu) if measurements.gpu else None
        self._cpu_table = self.cpu.table(max_rows)
        self._gpu_table = self.gpu.table(max_rows) if self.gpu else [0.0] * (max_rows + 1)
        self._transfer = statistics.median(measurements.transfer) if measurements.transfer else math.inf
        self._round_trip, self._row = _line(measurements.hop)
        self._experts_per_row = experts_per_row
        self.cpu_correction = Correction()
        self.transfer_correction = Correction()
        self._snapshots = self._take_snapshots()

    def costs(self, layer: int) -> Costs:
        """Returns a layer's costs: the same object until a correction has moved by some per cent."""
        if self.cpu_correction.is_due or self.transfer_correction.is_due:
            self._snapshots = self._take_snapshots()
        return self._snapshots[self._layer_bytes[layer]]

    def observe_cpu(self, predicted_seconds: float, actual_seconds: float) -> None:
        """Learns from a message: predicted and actual seconds, both with the hop or both without.

        One factor corrects the hop and the experts, because whatever else uses the CPU's cores slows both.
        """
        self.cpu_correction.observe(predicted_seconds, actual_seconds)

    def observe_transfer(self, predicted_seconds: float, actual_seconds: float) -> None:
        """Learns from a copy: predicted and actual seconds."""
        self.transfer_correction.observe(predicted_seconds, actual_seconds)

    def _take_snapshots(self) -> dict[int, Costs]:
        """Returns the present costs by the bytes of an expert."""
        cpu, transfer = self.cpu_correction.apply(), self.transfer_correction.apply()
        return {
            expert_bytes: Costs(
                cpu=[seconds * cpu * scale for seconds in self._cpu_table],
                gpu=[seconds * scale for seconds in self._gpu_table],
                transfer=self._transfer * transfer * scale,
                round_trip=self._round_trip * cpu,
                row=self._row * cpu,
                experts_per_row=self._experts_per_row,
            )
            for expert_bytes, scale in self._scales.items()
        }


def timeout_seconds(predicted_seconds: float, cap_seconds: float) -> float:
    """Returns how long a message may take before its service counts as lost: many times the prediction, up to a cap.

    Predictions assume a machine that does nothing else; a floor covers one that stalls for a moment.
    """
    return min(cap_seconds, max(_LEAST_TIMEOUT_SECONDS, _TIMEOUT_FACTOR * predicted_seconds))


def _line(hop: Iterable[Sample]) -> tuple[float, float]:
    """Returns the seconds of a message without rows, and of each row: the line through the fewest and the most rows."""
    by_rows = medians(hop)
    (few, few_seconds), (many, many_seconds) = min(by_rows.items()), max(by_rows.items())
    row = max(0.0, (many_seconds - few_seconds) / (many - few)) if many > few else 0.0
    return max(0.0, few_seconds - row * few), row
