"""How much one message to the CPU expert service may hold, and so one step. It sends none."""

from dataclasses import dataclass

from fiddler import tensors
from fiddler.v1 import experts_pb2
from gpu_service.errors import FlagError
from gpu_service.settings import Settings

_MESSAGE_OVERHEAD_BYTES = 1024
CHUNK_ALONE = 4096
"""Where experts are copied to a device and nothing else is said."""


@dataclass(frozen=True, slots=True)
class Chunks:
    """The most tokens of a prompt that one step computes."""

    beside_others: int
    alone: int
    """While there is no other request; no less than beside others."""

    @classmethod
    def resolve(cls, experts: experts_pb2.DescribeResponse, settings: Settings, copies_experts: bool) -> "Chunks":
        """What was asked for, as far as a message holds it.

        Args:
            experts: What the CPU expert service said of itself.
            settings: What the user asks for.
            copies_experts: Whether experts may be copied to the device for a step. That takes as long for few tokens
                as for many, so that a prompt in few chunks is copied for few times. Where the CPU alone computes, a
                chunk of the usual size has rows enough for its experts, and larger ones only make others wait.

        Raises:
            FlagError: See `max_rows`.
        """
        most = max_rows(experts, settings)
        chunk, alone = settings.prefill_chunk, settings.prefill_chunk_alone
        if alone == "auto":
            alone = CHUNK_ALONE if copies_experts else chunk
        return cls(min(chunk, most), min(max(chunk, alone), most))


def max_rows(experts: experts_pb2.DescribeResponse, settings: Settings) -> int:
    """The most rows that one message to the expert service may hold.

    Raises:
        FlagError: A decode step, one row for each slot, may not fit.
    """
    limit = min(settings.max_message_bytes, experts.limits.max_message_bytes)
    row_bytes = max(layer.hidden_size for layer in experts.layers) * tensors.DTYPES[experts.dtype].itemsize
    row_bytes += experts.limits.max_experts_per_row * 8  # an id and a weight for each
    rows = min(experts.limits.max_rows, (limit - _MESSAGE_OVERHEAD_BYTES) // row_bytes)
    if rows < settings.max_slots:
        raise FlagError(f"--max-slots: {settings.max_slots} rows at once, and a message holds {max(rows, 0)}")
    return rows
