"""How much one message to the CPU expert service may hold. It sends none."""

from fiddler import tensors
from fiddler.v1 import experts_pb2
from gpu_service.settings import Settings

_MESSAGE_OVERHEAD_BYTES = 1024


def max_rows(experts: experts_pb2.DescribeResponse, settings: Settings) -> int:
    """The most rows that one message to the expert service may hold.

    Raises:
        ValueError: A decode step, one row for each slot, may not fit.
    """
    limit = min(settings.max_message_bytes, experts.limits.max_message_bytes)
    row_bytes = max(layer.hidden_size for layer in experts.layers) * tensors.DTYPES[experts.dtype].itemsize
    row_bytes += experts.limits.max_experts_per_row * 8  # an id and a weight for each
    rows = min(experts.limits.max_rows, (limit - _MESSAGE_OVERHEAD_BYTES) // row_bytes)
    if rows < settings.max_slots:
        raise ValueError(f"--max-slots: {settings.max_slots} rows at once, and a message holds {max(rows, 0)}")
    return rows
