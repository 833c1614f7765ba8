"""The real servicer in this process, with the native kernel and shared memory, on a real socket."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import torch
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from cpu_expert_service.native_kernel import NativeKernel
from cpu_expert_service.runner import Runner
from cpu_expert_service.service import ExpertServicer
from cpu_expert_service.settings import Settings
from fiddler import listen, rpc
from fiddler.checkpoint import Checkpoint
from fiddler.kernels.cpus import read_topology
from fiddler.kernels.native import NativeUnavailableError, Pool, available_tiers
from fiddler.v1 import experts_pb2_grpc

MAX_MESSAGE_BYTES = 2**22
MAX_ROWS, MAX_EXPERTS_PER_ROW = 512, 8


@dataclass
class SharedService:
    """A service and the parts that a test looks into."""

    address: str
    checkpoint: Checkpoint
    runner: Runner
    servicer: ExpertServicer
    server: grpc.Server

    def stop(self, grace_seconds: float | None = None) -> None:
        """Ends it: at once, as SIGKILL does for its callers, or after what is under way."""
        if grace_seconds is not None:
            self.servicer.end_idle_streams()
        self.server.stop(grace_seconds).wait()


def start(model: Path, address: str, mib: int = 1, dtype: torch.dtype = torch.float32) -> SharedService:
    """Serves a checkpoint with one thread; messages beyond a slot of that memory go over the socket."""
    try:
        kernel = NativeKernel(Pool([min(read_topology().nodes)]), available_tiers()[-1])
    except NativeUnavailableError as error:
        pytest.skip(str(error))
    settings = Settings(
        model=model,
        listen=address,
        shared_memory_mib=mib,
        max_rows=MAX_ROWS,
        max_experts_per_row=MAX_EXPERTS_PER_ROW,
        max_streams=4,
        max_message_bytes=MAX_MESSAGE_BYTES,
    )
    checkpoint = Checkpoint.open(model)
    runner = Runner(checkpoint, kernel)
    servicer = ExpertServicer(checkpoint, runner, dtype=dtype, settings=settings)
    servicer.share_memory()
    server = grpc.server(ThreadPoolExecutor(16), options=rpc.server_options(MAX_MESSAGE_BYTES))
    experts_pb2_grpc.add_ExpertServiceServicer_to_server(servicer, server)
    healthy = health.HealthServicer()
    healthy.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    listen.bind(server, address)
    server.start()
    return SharedService(address, checkpoint, runner, servicer, server)


@contextmanager
def serve(model: Path, directory: Path, mib: int = 1, dtype: torch.dtype = torch.float32) -> Iterator[SharedService]:
    """A service that does not outlive the test."""
    service = start(model, f"unix:{directory}/experts.sock", mib, dtype)
    try:
        yield service
    finally:
        service.stop()
