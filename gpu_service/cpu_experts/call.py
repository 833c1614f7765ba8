"""One message to the CPU expert service: sent on a stream or posted in shared memory, and its answer."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import grpc
import torch

from fiddler import tensors
from fiddler.kernels.segments.caller import Posting
from fiddler.kernels.segments.layout import Outcome
from fiddler.v1 import experts_pb2
from gpu_service import metrics
from gpu_service.cpu_experts.connection import Stream
from gpu_service.cpu_experts.shared_segment import SegmentRefusalError

_SENT_BYTES = metrics.EXPERT_CALL_BYTES.labels("sent")
_RECEIVED_BYTES = metrics.EXPERT_CALL_BYTES.labels("received")


@dataclass(eq=False, slots=True, weakref_slot=True)
class Call:
    """A message that was sent and is not joined yet: a PendingOutput."""

    join_with: Callable[["Call"], torch.Tensor]
    """Waits for its answer, and sends it again if its stream breaks."""
    sequence: int
    layer: int
    hidden: torch.Tensor
    expert_ids: torch.Tensor
    routing_weights: torch.Tensor
    request_ids: Sequence[str]
    timeout_seconds: float
    sent_at: float
    stream: Stream
    """The stream that it was sent on last."""
    slot: int | None = None
    """Where it was posted in the memory that the stream shares; None if it went over the stream."""
    resent: bool = False
    sent_bytes: int = 0
    response: experts_pb2.RunResponse | None = None
    """The answer, if it came over the stream."""
    output: torch.Tensor | None = None
    """The answer's rows, however it came."""
    addend: torch.Tensor | None = None
    """What is added to the rows of an answer in shared memory, if they are finite."""
    is_sum: bool = False
    """Whether it was."""
    seconds: float = 0.0
    """From sending it to its answer."""
    received_bytes: int = 0
    compute_seconds: float | None = None

    @property
    def remaining_seconds(self) -> float:
        """Until its time has run out; negative afterwards."""
        return self.sent_at + self.timeout_seconds - time.monotonic()

    def join(self) -> torch.Tensor:
        """See PendingOutput."""
        output = self.join_with(self)
        self.counting()()
        return output

    def join_sum(self, addend: torch.Tensor) -> tuple[torch.Tensor, bool]:
        """See PendingSum."""
        self.addend = addend
        return self.join_with(self), self.is_sum

    def counting(self) -> Callable[[], None]:
        """See PendingSum."""
        return partial(_count, self.seconds, self.sent_bytes, self.received_bytes)

    def posted(self, slot: int) -> None:
        """Notes that native code has posted it; a negative slot: it has not, and it is sent now."""
        segment = self.stream.segment
        if slot < 0 or segment is None:
            self.send()
            return
        segment.own(slot, self)
        self.slot = slot
        self._count_sent()

    def send(self) -> None:
        """Posts it to the memory that its stream shares, or sends it on the stream."""
        segment = self.stream.segment
        self.slot = None
        if segment is not None:
            self.slot = segment.post(
                self,
                self.sequence,
                self.layer,
                hidden=self.hidden,
                expert_ids=self.expert_ids,
                routing_weights=self.routing_weights,
                timeout_seconds=self.timeout_seconds,
                names="\n".join(self.request_ids),
            )
        if self.slot is not None:
            self._count_sent()
            return
        request = self._request()
        self.sent_bytes = request.ByteSize()
        self.stream.send(request)

    def receive(self, seconds: float) -> None:
        """Waits for the answer to what was posted.

        Raises:
            grpc.RpcError: There is none.
        """
        segment, slot = self.stream.segment, self.slot
        assert segment is not None
        assert slot is not None
        answer = segment.wait(slot, self.sequence, seconds, torch.empty_like(self.hidden), self.addend)
        if answer.outcome is Outcome.ANSWERED:
            self.is_sum = answer.is_sum
            self.output, self.compute_seconds = answer.output, answer.compute_seconds
            self.received_bytes = self.hidden.nbytes
        elif answer.outcome is Outcome.REFUSED:
            raise SegmentRefusalError(answer.code, answer.text)
        elif answer.outcome is Outcome.BROKEN:
            raise SegmentRefusalError(grpc.StatusCode.INTERNAL.value[0], "malformed answer in shared memory")
        else:
            self.stream.overdue |= answer.outcome is Outcome.OVERDUE
            self.stream.close()
            raise self.stream.error()

    def take(self, response: experts_pb2.RunResponse) -> None:
        """Takes the answer that came over the stream.

        Raises:
            TensorError: It is malformed.
        """
        self.received_bytes, self.compute_seconds = response.ByteSize(), response.compute_seconds
        shape = tuple(self.hidden.shape)
        self.output = tensors.decode(response.output, "output", dtype=self.hidden.dtype, shape=shape)

    def _count_sent(self) -> None:
        self.sent_bytes = self.hidden.nbytes + self.expert_ids.nbytes + self.routing_weights.nbytes

    def _request(self) -> experts_pb2.RunRequest:
        request = experts_pb2.RunRequest(
            sequence=self.sequence,
            layer=self.layer,
            time_remaining_seconds=self.timeout_seconds,
            request_ids=self.request_ids,
        )
        tensors.encode(self.hidden, request.hidden)
        tensors.encode(self.expert_ids, request.expert_ids)
        tensors.encode(self.routing_weights, request.routing_weights)
        return request


def _count(seconds: float, sent_bytes: int, received_bytes: int) -> None:
    metrics.EXPERT_CALL_SECONDS.observe(seconds)
    _SENT_BYTES.inc(sent_bytes)
    _RECEIVED_BYTES.inc(received_bytes)


@dataclass(frozen=True, slots=True)
class PreparedCall:
    """A message that native code is to post as soon as its rows are computed: a PreparedMessage."""

    posting: Posting
    make: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Call]
    """Makes it of hidden rows, expert ids and routing weights."""

    def sent(self, slot: int, hidden: torch.Tensor, *, expert_ids: torch.Tensor, routing_weights: torch.Tensor) -> Call:
        """See PreparedMessage."""
        call = self.make(hidden, expert_ids, routing_weights)
        call.posted(slot)
        return call
