"""Memory that a stream shares with the CPU expert service: messages are posted there instead of sent."""

import os
import weakref
from pathlib import Path

import grpc
import torch
from typing_extensions import override

from fiddler.kernels.native import NativeError, NativeUnavailableError
from fiddler.kernels.segments.caller import Answer, CallerEnd, Posting
from fiddler.kernels.segments.layout import LAYOUT_VERSION, Shape
from fiddler.transport import shared_memory
from fiddler.v1 import experts_pb2

_SPIN_MICROSECONDS = 20


def _spin_microseconds(num_threads: int) -> int:
    """How long to wait awake: not at all where every CPU computes experts, which would lose one of them to the wait."""
    return _SPIN_MICROSECONDS if len(os.sched_getaffinity(0)) > num_threads else 0


class SegmentError(Exception):
    """A segment that is offered cannot be used; messages then go over the stream."""


class SegmentRefusalError(grpc.RpcError):
    """The service refused a message, with a status as on a stream."""

    def __init__(self, code: int, details: str) -> None:
        super().__init__(details)
        self._code = next((known for known in grpc.StatusCode if known.value[0] == code), grpc.StatusCode.UNKNOWN)
        self._details = details

    @override
    def code(self) -> grpc.StatusCode:
        return self._code

    @override
    def details(self) -> str:
        return self._details


class SharedSegment:
    """The caller's end of one segment. For one thread, but for `close`."""

    def __init__(self, offered: experts_pb2.OpenSegmentResponse, num_threads: int) -> None:
        """Maps the segment.

        Args:
            offered: What the service offers.
            num_threads: How many compute there.

        Raises:
            SegmentError: This process does not see the file, or it is not the one that is offered.
        """
        if offered.layout_version != LAYOUT_VERSION:
            raise SegmentError(f"the segment's layout has version {offered.layout_version}, not {LAYOUT_VERSION}")
        shape = Shape(offered.num_slots, offered.request_bytes, offered.response_bytes)
        try:
            memory = shared_memory.attach(Path(offered.path), shape.num_bytes)
            self._end = CallerEnd(memory, shape, offered.id, spin_microseconds=_spin_microseconds(num_threads))
        except (OSError, NativeError, NativeUnavailableError) as error:
            raise SegmentError(str(error)) from None
        self.metadata = ((shared_memory.METADATA, offered.id.hex()),)
        """What tells the service that a stream uses it."""
        self._owners: dict[int, weakref.ref[object]] = {}

    def prepare(
        self,
        sequence: int,
        layer: int,
        *,
        rows: int,
        experts_per_row: int,
        timeout_seconds: float,
        names: str,
    ) -> Posting:
        """Describes a message that native code is to post next. `own` is to be told where it did.

        Args:
            sequence: A number larger than those before.
            layer: Index into the checkpoint's MoE layers.
            rows: How many.
            experts_per_row: How many each.
            timeout_seconds: How long the answer may take.
            names: The requests that it is computed for, a line each.
        """
        self._release()
        return self._end.prepare(
            sequence,
            layer,
            rows=rows,
            experts_per_row=experts_per_row,
            remaining_seconds=timeout_seconds,
            names=names,
        )

    def own(self, slot: int, owner: object) -> None:
        """Notes who waits for the answer in a slot; see `post`."""
        self._owners[slot] = weakref.ref(owner)

    def post(
        self,
        owner: object,
        sequence: int,
        layer: int,
        *,
        hidden: torch.Tensor,
        expert_ids: torch.Tensor,
        routing_weights: torch.Tensor,
        timeout_seconds: float,
        names: str,
    ) -> int | None:
        """Posts a message, and returns its slot; None if it must go over the stream: there is no room.

        Args:
            owner: Once it is gone, nobody waits for the answer, and the slot may be used again.
            sequence: A number larger than those before.
            layer: Index into the checkpoint's MoE layers.
            hidden: [rows, hidden] on the CPU, contiguous.
            expert_ids: [rows, k] int32, contiguous.
            routing_weights: [rows, k] float32, contiguous.
            timeout_seconds: How long the answer may take.
            names: The requests that it is computed for, a line each.
        """
        self._release()
        posted = self._end.post(
            sequence,
            layer,
            hidden=hidden,
            expert_ids=expert_ids,
            routing_weights=routing_weights,
            remaining_seconds=timeout_seconds,
            names=names,
        )
        if posted is not None:
            self.own(posted, owner)
        return posted

    def _release(self) -> None:
        """Frees the slots whose answers nobody waits for."""
        for slot, owned_by in list(self._owners.items()):
            if owned_by() is None and self._end.release(slot):
                del self._owners[slot]

    def wait(
        self, slot: int, sequence: int, seconds: float, output: torch.Tensor, addend: torch.Tensor | None = None
    ) -> Answer:
        """Waits for an answer, at most so long.

        Args:
            slot: What `post` returned, or `own` was told.
            sequence: Of the message.
            seconds: How long.
            output: [rows, hidden], contiguous: the rows are written to it.
            addend: Is added to them if they are finite, see CallerEnd.join; None: nothing is.
        """
        if addend is None:
            answer = self._end.wait(slot, sequence, seconds, output)
        else:
            answer = self._end.join(slot, sequence, seconds, addend=addend, output=output)
        if answer.frees_slot:
            del self._owners[slot]
        return answer

    def close(self) -> None:
        """Ends every wait. For any thread."""
        self._end.close()
