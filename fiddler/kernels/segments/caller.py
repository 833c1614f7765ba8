"""The caller's end of a segment: posts messages and waits for their answers."""

import ctypes
import mmap
from ctypes import c_int32
from dataclasses import dataclass
from typing import NamedTuple

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
    is_sum: bool = False
    """Whether what was to be added to the rows is added."""

    @property
    def frees_slot(self) -> bool:
        """Whether the slot may be used again."""
        return self.outcome in (Outcome.ANSWERED, Outcome.REFUSED)


class Posting(NamedTuple):
    """A message that native code is to post once its rows are computed. Its addresses are valid until the next one."""

    segment: int
    request: int


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
        self._request_address = ctypes.addressof(self._request)
        self._is_finite = c_int32()
        self._is_finite_pointer = ctypes.pointer(self._is_finite)

    def prepare(
        self,
        sequence: int,
        layer: int,
        *,
        rows: int,
        experts_per_row: int,
        remaining_seconds: float | None = None,
        names: str = "",
    ) -> Posting:
        """Describes a message that is to be posted next; the arguments are those of `post`."""
        request = self._request
        request.sequence, request.layer, request.rows, request.experts_per_row = sequence, layer, rows, experts_per_row
        request.remaining_ns = _NO_LIMIT if remaining_seconds is None else max(int(remaining_seconds * 1e9), 0)
        encoded = names.encode()[:NAMES_BYTES]
        request.names_bytes, request.names = len(encoded), encoded
        return Posting(self._handle, self._request_address)

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
        rows, experts_per_row = expert_ids.shape
        self.prepare(
            sequence,
            layer,
            rows=rows,
            experts_per_row=experts_per_row,
            remaining_seconds=remaining_seconds,
            names=names,
        )
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
        outcome = self._library.fiddler_segment_wait(
            self._handle, slot, sequence, seconds, output.data_ptr(), output.nbytes, self._response_pointer
        )
        return self._answer(outcome, output, is_sum=False)

    def join(self, slot: int, sequence: int, seconds: float, *, addend: torch.Tensor, output: torch.Tensor) -> Answer:
        """Does what `wait` does, and adds to rows that are finite.

        Args:
            slot: What `post` returned.
            sequence: What `post` was given.
            seconds: How long.
            addend: [rows, hidden] bfloat16, contiguous.
            output: [rows, hidden] bfloat16, contiguous: the sums are written to it; if a row is not finite, the rows.
        """
        outcome = self._library.fiddler_segment_join(
            self._handle,
            slot,
            sequence,
            seconds,
            addend.data_ptr(),
            output.data_ptr(),
            output.numel(),
            self._response_pointer,
            self._is_finite_pointer,
        )
        return self._answer(outcome, output, is_sum=bool(self._is_finite.value))

    def _answer(self, number: int, output: torch.Tensor, *, is_sum: bool) -> Answer:
        outcome, response = Outcome(number), self._response
        refused = outcome is Outcome.REFUSED
        return Answer(
            outcome,
            output if outcome is Outcome.ANSWERED else None,
            response.queue_seconds,
            response.compute_seconds,
            response.code if refused else 0,
            bytes(response.text)[: response.text_bytes].decode(errors="replace") if refused else "",
            is_sum,
        )

    def release(self, slot: int) -> bool:
        """Frees a slot whose answer nobody waits for, if the answer is there. Whether the slot is free now."""
        return bool(self._library.fiddler_segment_release(self._handle, slot))
