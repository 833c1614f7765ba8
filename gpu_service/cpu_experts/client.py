"""The client of the CPU expert service: sends layers and joins their sums, several at a time over one stream.

A failure is raised at once and not after several attempts, because the caller has another way to compute the layer.
"""

import itertools
import time
import weakref
from collections.abc import Sequence
from functools import partial

import grpc
import structlog
import torch
from typing_extensions import override

from fiddler import logs, tensors
from fiddler.v1 import experts_pb2
from gpu_service import metrics
from gpu_service.cpu_experts.backend import PreparingExperts
from gpu_service.cpu_experts.call import Call, PreparedCall
from gpu_service.cpu_experts.connection import Stream, Watch
from gpu_service.cpu_experts.link import ExpertLink, OnChange
from gpu_service.errors import ExpertServiceError, HandshakeError

_log = structlog.get_logger(__name__)

_HEAL_SECONDS = 0.2
"""How long a service whose stream broke may take to show that it is still there."""
_GRACE_SECONDS = 0.05
"""The least time that `join` waits: the answer may be there, unread, although its time has run out."""
_FINAL = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
"""Codes after which a message is not sent again, because it would fail in the same way."""


class ExpertClient(PreparingExperts):
    """Sends layers to the CPU expert service. `submit`, `prepare` and `join` are for one thread.

    A message that a broken stream left unanswered is sent again once, which is safe because it has no side effects. If
    that fails, the service is lost: all calls under way fail, and `submit` raises, until a background thread has
    reached the service again.
    """

    def __init__(
        self,
        address: str,
        dtype: torch.dtype,
        *,
        timeout_seconds: float,
        max_message_bytes: int,
        on_change: OnChange = lambda error: None,
        weight_format: str = "",
    ) -> None:
        """Does not connect yet.

        Args:
            address: HOST:PORT or unix:PATH.
            dtype: The dtype of hidden rows, both ways.
            timeout_seconds: How long one layer may take, including its time in the queue, unless `submit` is given
                another time.
            max_message_bytes: The largest message, both ways.
            on_change: See ExpertLink.
            weight_format: See Connection.
        """
        self.address = address
        self._dtype = dtype
        self._timeout_seconds = timeout_seconds
        self._link = ExpertLink(
            address, dtype, max_message_bytes=max_message_bytes, on_change=on_change, weight_format=weight_format
        )
        self._watch = Watch()
        self._sequence = itertools.count(1)
        # weak: a call that its caller dropped, after another failure, is neither waited for nor sent again
        self._pending: weakref.WeakValueDictionary[int, Call] = weakref.WeakValueDictionary()

    @property
    @override
    def available(self) -> bool:
        return self._link.error is None

    @property
    def error(self) -> ExpertServiceError | None:
        """Why the service may not be used; None if it may. For any thread."""
        return self._link.error

    def connect(self, fingerprint: str, timeout_seconds: float = 10.0) -> experts_pb2.DescribeResponse:
        """Tries once to reach a service that is ready and serves the same checkpoint. If lost later, it is found again.

        Args:
            fingerprint: The checkpoint's.
            timeout_seconds: How long the service may take to answer. An address without a service fails at once.

        Raises:
            HandshakeError: The service serves another checkpoint, format of weights or dtype.
            ExpertServiceError: The service did not answer, or is not ready.
        """
        return self._link.connect(fingerprint, timeout_seconds)

    @override
    def submit(
        self,
        layer: int,
        hidden: torch.Tensor,
        *,
        expert_ids: torch.Tensor,
        routing_weights: torch.Tensor,
        timeout_seconds: float | None = None,
    ) -> Call:
        call = self._call(
            next(self._sequence),
            layer,
            hidden.to(self._dtype).contiguous(),
            expert_ids.contiguous(),
            routing_weights.contiguous(),
            stream=self._link.stream(),
            request_ids=logs.requests_under_way(),
            timeout_seconds=timeout_seconds,
        )
        call.send()
        return call

    @override
    def prepare(
        self, layer: int, *, rows: int, experts_per_row: int, timeout_seconds: float | None = None
    ) -> PreparedCall | None:
        stream = self._link.stream()
        if stream.segment is None or self._dtype is not torch.bfloat16:
            return None
        sequence, request_ids = next(self._sequence), logs.requests_under_way()
        posting = stream.segment.prepare(
            sequence,
            layer,
            rows=rows,
            experts_per_row=experts_per_row,
            timeout_seconds=self._timeout_seconds if timeout_seconds is None else timeout_seconds,
            names="\n".join(request_ids),
        )
        make = partial(
            self._call, sequence, layer, stream=stream, request_ids=request_ids, timeout_seconds=timeout_seconds
        )
        return PreparedCall(posting, make)

    def _call(
        self,
        sequence: int,
        layer: int,
        hidden: torch.Tensor,
        expert_ids: torch.Tensor,
        routing_weights: torch.Tensor,
        *,
        stream: Stream,
        request_ids: Sequence[str],
        timeout_seconds: float | None,
    ) -> Call:
        """A message to this stream, which `join` will find."""
        call = Call(
            self._join,
            sequence,
            layer,
            hidden=hidden,
            expert_ids=expert_ids,
            routing_weights=routing_weights,
            request_ids=request_ids,
            timeout_seconds=self._timeout_seconds if timeout_seconds is None else timeout_seconds,
            sent_at=time.monotonic(),
            stream=stream,
        )
        self._pending[sequence] = call
        return call

    def abort(self) -> None:
        """Ends the stream for good: calls that wait for an answer raise ExpertServiceError. For any thread."""
        self._link.abort()

    def close(self) -> None:
        """Ends the stream, the connection and the threads."""
        self._link.close()
        self._watch.close()

    def _join(self, call: Call) -> torch.Tensor:
        while call.output is None:
            try:
                self._receive(call)
            except grpc.RpcError as error:
                self._recover(call, error)
            except tensors.TensorError as error:
                raise self._lost(call, f"malformed answer: {error}") from None
        self._pending.pop(call.sequence, None)
        call.seconds = time.monotonic() - call.sent_at
        return call.output

    def _receive(self, call: Call) -> None:
        """Waits for the answer. On a stream, earlier ones belong to calls that are joined later, or never."""
        seconds = max(call.remaining_seconds, _GRACE_SECONDS)
        if call.slot is not None:
            call.receive(seconds)
            self._link.heard()
            return
        self._watch.arm(call.stream, time.monotonic() + seconds)
        try:
            while call.response is None:
                response = call.stream.receive()
                if answered := self._pending.get(response.sequence):
                    answered.response = response
            call.take(call.response)
        finally:
            self._watch.disarm()
        self._link.heard()

    def _recover(self, call: Call, error: grpc.RpcError) -> None:
        """Sends what a broken stream left unanswered on a new one, once and at once, or gives the service up."""
        stream, code, details = call.stream, error.code(), error.details()
        if stream.failure is not None:  # the service was given up before, which was reported then
            raise ExpertServiceError(str(stream.failure))
        if stream.overdue:
            code, details = grpc.StatusCode.DEADLINE_EXCEEDED, f"no answer within {call.timeout_seconds:g} s"
        metrics.EXPERT_CALL_FAILURES.labels(code.name).inc()
        reason = f"{code.name}: {details}"
        within_seconds = min(_HEAL_SECONDS, call.remaining_seconds)
        if code in _FINAL or call.resent or within_seconds <= 0:
            raise self._lost(call, reason)
        try:
            fresh = self._link.renew(stream, within_seconds)
        except HandshakeError as mismatch:
            raise self._lost(call, str(mismatch)) from None
        except ExpertServiceError:
            raise self._lost(call, reason) from None
        _log.warning("resending a layer", layer=call.layer, code=code.name, details=details)
        for unanswered in list(self._pending.values()):
            if unanswered.stream is stream and unanswered.response is None and unanswered.output is None:
                unanswered.stream, unanswered.resent = fresh, True
                unanswered.send()

    def _lost(self, call: Call, reason: str) -> ExpertServiceError:
        error = ExpertServiceError(f"{self.address}: the CPU expert service failed: {reason}")
        self._link.lose(call.stream, error)
        return error
