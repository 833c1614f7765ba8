"""The real servicer on a real socket, in this process, with a kernel that a test controls."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import torch
from prometheus_client import REGISTRY

from cpu_expert_service.kernel import LayerFunction, PyTorchKernel
from cpu_expert_service.runner import Runner
from cpu_expert_service.service import ExpertServicer
from cpu_expert_service.settings import Settings
from fiddler import listen, rpc
from fiddler.checkpoint import Checkpoint
from fiddler.expert_math import LayerWeights
from fiddler.v1 import experts_pb2_grpc

MAX_ROWS, MAX_EXPERTS_PER_ROW, MAX_STREAMS, MAX_MESSAGE_BYTES = 16, 4, 3, 2**16


class MoodyKernel(PyTorchKernel):
    """Computes, unless a test blocks it or has it fail."""

    failure: Exception | None = None
    gate: threading.Event | None = None

    def prepare(self, layer: LayerWeights) -> LayerFunction:
        compute = super().prepare(layer)

        def moodily(hidden: torch.Tensor, expert_ids: torch.Tensor, routing_weights: torch.Tensor) -> torch.Tensor:
            if self.gate:
                assert self.gate.wait(20)
            if self.failure:
                raise self.failure
            return compute(hidden, expert_ids, routing_weights)

        return moodily


@dataclass(frozen=True)
class Service:
    """A server in this process, and a channel to it."""

    address: str
    runner: Runner
    kernel: MoodyKernel
    channel: grpc.Channel
    stub: experts_pb2_grpc.ExpertServiceStub


@contextmanager
def serve(model: Path, directory: Path) -> Iterator[Service]:
    """Serves a checkpoint in float32 on a socket in a directory."""
    settings = Settings(
        model=model,
        max_rows=MAX_ROWS,
        max_experts_per_row=MAX_EXPERTS_PER_ROW,
        max_streams=MAX_STREAMS,
        max_message_bytes=MAX_MESSAGE_BYTES,
    )
    checkpoint = Checkpoint.open(model)
    kernel = MoodyKernel(torch.get_num_threads())
    runner = Runner(checkpoint, kernel)
    server = grpc.server(ThreadPoolExecutor(MAX_STREAMS + 4), options=rpc.server_options(MAX_MESSAGE_BYTES))
    servicer = ExpertServicer(checkpoint, runner, dtype=torch.float32, settings=settings)
    experts_pb2_grpc.add_ExpertServiceServicer_to_server(servicer, server)
    address = f"unix:{directory}/experts.sock"
    listen.bind(server, address)
    server.start()
    try:
        with grpc.insecure_channel(address) as channel:
            yield Service(address, runner, kernel, channel, experts_pb2_grpc.ExpertServiceStub(channel))
    finally:
        server.stop(None).wait()


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0
