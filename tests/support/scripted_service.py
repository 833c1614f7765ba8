"""A CPU expert service in this process that answers by a script, and can be stopped and started."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import torch
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from fiddler import PROTOCOL_VERSION, tensors
from fiddler.v1 import experts_pb2, experts_pb2_grpc

Answer = Callable[[experts_pb2.RunRequest, grpc.ServicerContext], experts_pb2.RunResponse]


def double(request: experts_pb2.RunRequest, _: grpc.ServicerContext) -> experts_pb2.RunResponse:
    """Answers with twice the rows."""
    response = experts_pb2.RunResponse(sequence=request.sequence)
    rows = tensors.decode(request.hidden, "hidden", dtype=torch.float32, shape=(None, 3))
    tensors.encode(rows * 2, response.output)
    return response


def abort(code: grpc.StatusCode) -> Answer:
    """Ends the stream with a code."""

    def answer(_: experts_pb2.RunRequest, context: grpc.ServicerContext) -> experts_pb2.RunResponse:
        context.abort(code, "as scripted")

    return answer


def after(event: threading.Event) -> Answer:
    """Answers with twice the rows, once an event is set."""

    def answer(request: experts_pb2.RunRequest, context: grpc.ServicerContext) -> experts_pb2.RunResponse:
        event.wait(30)
        return double(request, context)

    return answer


class ScriptedService(experts_pb2_grpc.ExpertServiceServicer):
    """Answers the n-th message by the n-th entry of its script, and all later ones by the last entry."""

    def __init__(self, address: str) -> None:
        self.script: list[Answer] = [double]
        self.requests: list[experts_pb2.RunRequest] = []
        self.streams = 0
        self.handshakes = 0
        self.fingerprint = "right"
        self.segments: Callable[[experts_pb2.OpenSegmentRequest, Any], experts_pb2.OpenSegmentResponse] | None = None
        """What offers shared memory; None: it shares none."""
        self.answered_fingerprint = ""
        """What it answers with although it accepted the caller's; empty for the same."""
        self._address = address
        self._health = health.HealthServicer()
        self._server: grpc.Server | None = None

    def Describe(  # noqa: N802
        self, request: experts_pb2.DescribeRequest, context: grpc.ServicerContext
    ) -> experts_pb2.DescribeResponse:
        self.handshakes += 1
        if request.checkpoint_fingerprint != self.fingerprint:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"the checkpoint is {self.fingerprint}")
        assert request.protocol_version == PROTOCOL_VERSION
        return experts_pb2.DescribeResponse(
            kernel="scripted",
            protocol_version=PROTOCOL_VERSION,
            checkpoint_fingerprint=self.answered_fingerprint or self.fingerprint,
            dtype=request.dtype,
            weight_format=request.weight_format,
            shares_memory=self.segments is not None,
        )

    def OpenSegment(  # noqa: N802
        self, request: experts_pb2.OpenSegmentRequest, context: grpc.ServicerContext
    ) -> experts_pb2.OpenSegmentResponse:
        if self.segments is None:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as scripted")
        return self.segments(request, context)

    def Run(  # noqa: N802
        self, request_iterator: Iterator[experts_pb2.RunRequest], context: grpc.ServicerContext
    ) -> Iterator[experts_pb2.RunResponse]:
        self.streams += 1
        for request in request_iterator:
            self.requests.append(request)
            yield self.script[min(len(self.requests), len(self.script)) - 1](request, context)

    def start(self) -> None:
        """Starts to serve."""
        self._server = grpc.server(ThreadPoolExecutor(8))
        experts_pb2_grpc.add_ExpertServiceServicer_to_server(self, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._server.add_insecure_port(self._address)
        self._server.start()

    def stop(self) -> None:
        """Stops at once, as after SIGKILL."""
        if self._server is not None:
            self._server.stop(0).wait()
            self._server = None

    def set_ready(self, ready: bool) -> None:
        """Sets what the health service reports."""
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        self._health.set("", status)
