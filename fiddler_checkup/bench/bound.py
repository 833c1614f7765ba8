"""How fast the memory lets a model decode: every token needs the dense weights and its experts, read once a step."""

from dataclasses import dataclass

from client import ModelInfo
from fiddler_checkup.bench.cases import Measurement


@dataclass(frozen=True, slots=True)
class Bound:
    """The most that reading memory allows.

    Attributes:
        tokens_per_second: Of all streams together.
        bytes_per_step: What a step reads from the host's memory.
    """

    tokens_per_second: float
    bytes_per_step: float


def bound_of(measurement: Measurement, model: ModelInfo, *, on_cpu: bool) -> Bound | None:
    """The bound of a case that decodes; None for a prompt, which computing bounds, or if memory was not measured.

    Args:
        measurement: The case, with what was counted.
        model: The model.
        on_cpu: Whether the dense weights are in the host's memory too.
    """
    limit = measurement.counters.limit
    if measurement.case.is_prefill or not limit:
        return None
    num_bytes = expert_bytes_per_step(model, measurement.case.rows) * measurement.counters.remote_share
    num_bytes += model.dense_memory_bytes if on_cpu else 0
    if not num_bytes:
        return None
    return Bound(measurement.case.rows * limit / num_bytes, num_bytes)


def expert_bytes_per_step(model: ModelInfo, rows: int) -> float:
    """Bytes of the different experts that a step of so many tokens is expected to choose, if all are chosen alike.

    Of E experts of a layer, rows that choose k each leave out one of them with probability (1 - k/E) ** rows.
    """
    if not model.num_experts:
        return 0.0
    chosen = 1 - (1 - min(1.0, model.num_experts_per_token / model.num_experts)) ** rows
    return model.expert_bytes * chosen
