"""How many rows one message to the CPU expert service may hold, and so how many tokens one step may compute."""

from fiddler import tensors
from fiddler.v1 import experts_pb2
from gpu_service.engine.prefill_chunks import PrefillChunks
from gpu_service.errors import FlagError
from gpu_service.model_runner.model import Model
from gpu_service.settings import Settings
from gpu_service.startup.device_memory import most_scored_tokens

_MESSAGE_OVERHEAD_BYTES = 1024
_LOGITS_BYTES = 64 * 2**20
"""Of a step that computes the logits of all its tokens, in float32."""
CHUNK_ALONE = 4096
"""--prefill-chunk-alone auto, if experts are copied to a GPU."""


def chunks_of(experts: experts_pb2.DescribeResponse, settings: Settings, model: Model) -> PrefillChunks:
    """The chunks that the settings ask for of a model; see `prefill_chunks`."""
    return prefill_chunks(
        experts,
        settings,
        copies_experts=model.device.type == "cuda",
        vocab_size=model.vocab_size,
        most_scored=most_scored_tokens(model),
    )


def prefill_chunks(
    experts: experts_pb2.DescribeResponse,
    settings: Settings,
    *,
    copies_experts: bool,
    vocab_size: int,
    most_scored: int | None = None,
) -> PrefillChunks:
    """The chunks that the settings ask for, as far as a message holds them.

    Args:
        experts: What the CPU expert service reports about itself.
        settings: The user's.
        copies_experts: Whether experts may be copied to the device for a step. A copy takes as long for few tokens as
            for many, so larger chunks need fewer copies. If the CPU alone computes, a chunk of the usual size has
            enough rows for its experts, and a larger one only makes other requests wait.
        vocab_size: The model's.
        most_scored: Tokens of a step whose attention scores fit the device; None: it holds no scores.

    Raises:
        FlagError: See `max_rows`.
    """
    most = max_rows(experts, settings)
    if most_scored is not None:
        most = min(most, max(settings.max_slots, most_scored))
    chunk, alone = settings.prefill_chunk, settings.prefill_chunk_alone
    if alone == "auto":
        alone = CHUNK_ALONE if copies_experts else chunk
    return PrefillChunks(
        with_others=min(chunk, most),
        alone=min(max(chunk, alone), most),
        logprobs=max(1, _LOGITS_BYTES // (4 * vocab_size)),
    )


def max_rows(experts: experts_pb2.DescribeResponse, settings: Settings) -> int:
    """The most rows that one message to the CPU expert service may hold.

    Raises:
        FlagError: A decode step, which has one row for each slot, may not fit.
    """
    limit = min(settings.max_message_bytes, experts.limits.max_message_bytes)
    row_bytes = max(layer.hidden_size for layer in experts.layers) * tensors.DTYPES[experts.dtype].itemsize
    row_bytes += experts.limits.max_experts_per_row * 8  # an id and a weight each
    rows = min(experts.limits.max_rows, (limit - _MESSAGE_OVERHEAD_BYTES) // row_bytes)
    if rows < settings.max_slots:
        raise FlagError(
            f"--max-slots: a decode step has up to {settings.max_slots} rows, and a message holds {max(rows, 0)}; "
            "fewer slots or a larger --max-message-bytes of both services fit"
        )
    return rows
