"""The caller's end of a segment: posts messages and waits for their answers."""

import ctypes
import mmap
from dataclasses import dataclass

import torch

from fiddler.kernels.segments.layout import NAMES_BYTES, End, Outcome, RequestHeader, ResponseHeader, Shape

_NO_LIMIT = -1


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a message."""

    outcome: Outcome
    output: torch.Tensor | None
    """The rows, if it was answered."""
    queue_seconds: float
    compute_seconds: float
    code: int
    """A gRPC status, if it was refused."""
    text: str
    """Why it was refused."""

    @property
    def frees_slot(self) -> bool:
        """Whether the slot may be used again."""
        return self.outcome in (Outcome.ANSWERED, Outcome.REFUSED)


class CallerEnd(End):
    """Posts messages and waits for their answers. For one thread, but for `close`."""

    def __init__(self, memory: mmap.mmap, shape: Shape, nonce: bytes, *, spin_microseconds: int) -> None:
        """Joins a segment that a service made.

        Raises:
            NativeError: The memory does not hold that segment.
            NativeUnavailableError: There is no native library.
        """
        super().__init__(memory, shape, nonce, False, spin_microseconds)
        self._request, self._response = RequestHeader(), ResponseHeader()
        self._request_pointer, self._response_pointer = ctypes.pointer(self._request), ctypes.pointer(self._response)

    def post(
        self,
        sequence: int,
        layer: int,
        *,
        hidden: torch.Tensor,
        expert_ids: torch.Tensor,
        routing_weights: torch.Tensor,
        remaining_seconds: float | None = None,
        names: str = "",
    ) -> int | None:
        """Posts a message, and returns its slot; None if no slot is free, or the message is larger than a slot.

        Args:
            sequence: A number larger than those before.
            layer: Index into the checkpoint's MoE layers.
            hidden: [rows, hidden] on the CPU, contiguous.
            expert_ids: [rows, k] int32, contiguous; -1 is left out.
            routing_weights: [rows, k] float32, contiguous.
            remaining_seconds: After which the answer is useless; None: never.
            names: For the service's log.
        """
        request = self._request
        request.sequence, request.layer = sequence, layer
        request.rows, request.experts_per_row = expert_ids.shape
        request.remaining_ns = _NO_LIMIT if remaining_seconds is None else max(int(remaining_seconds * 1e9), 0)
        encoded = names.encode()[:NAMES_BYTES]
        request.names_bytes, request.names = len(encoded), encoded
        slot = int(
            self._library.fiddler_segment_post(
                self._handle,
                self._request_pointer,
                hidden.data_ptr(),
                hidden.nbytes,
                expert_ids.data_ptr(),
                routing_weights.data_ptr(),
            )
        )
        return slot if slot >= 0 else None

    def wait(self, slot: int, sequence: int, seconds: float, output: torch.Tensor) -> Answer:
        """Waits for an answer, at most so long. The slot is free again if there was an answer or a refusal.

        Args:
            slot: What `post` returned.
            sequence: What `post` was given.
            seconds: How long.
            output: [rows, hidden], contiguous: the rows are written to it.
        """
        response = self._response
        outcome = Outcome(
            self._library.fiddler_segment_wait(
                self._handle, slot, sequence, seconds, output.data_ptr(), output.nbytes, self._response_pointer
            )
        )
        refused = outcome is Outcome.REFUSED
        return Answer(
            outcome,
            output if outcome is Outcome.ANSWERED else None,
            response.queue_seconds,
            response.compute_seconds,
            response.code if refused else 0,
            bytes(response.text)[: response.text_bytes].decode(errors="replace") if refused else "",
        )

    def release(self, slot: int) -> bool:
        """Frees a slot whose answer nobody waits for, if the answer is there. Whether the slot is free now."""
        return bool(self._library.fiddler_segment_release(self._handle, slot))
