"""The server's process, started by children.py: the real ExpertServicer with a kernel that computes nothing.

It serves the real service's method and, in a service of its own, the methods that are compared with it.
"""

import os
import sys
from pathlib import Path

from benchmarks.hop.variants import Variant

_variant = Variant.from_json(sys.argv[1])
if _variant.cores:
    os.sched_setaffinity(0, {_variant.cores[1]})
if _variant.prepared:
    from fiddler import process

    process.prepare()

# ruff: noqa: E402 - grpc is imported after the process is prepared
import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2_grpc

from benchmarks.hop import wire
from benchmarks.hop.messages import MAX_MESSAGE_BYTES, NoKernel
from cpu_expert_service.kernel_choice import build_kernel
from cpu_expert_service.runner import Runner
from cpu_expert_service.service import ExpertServicer
from cpu_expert_service.settings import Settings
from fiddler import listen, rpc, tensors
from fiddler.checkpoint import Checkpoint
from fiddler.kernels.cpus import read_topology
from fiddler.v1 import experts_pb2, experts_pb2_grpc

_Requests = Iterator[experts_pb2.RunRequest]
_Answers = Iterator[experts_pb2.RunResponse]


class _Handlers:
    """The methods of all transports."""

    def __init__(self, directory: Path, address: str) -> None:
        settings = Settings(model=directory, metrics_port=0, listen=address)
        checkpoint = Checkpoint.open(directory)
        dtype = tensors.resolve_dtype(settings.dtype, checkpoint.expert_dtype)
        kernel = build_kernel(settings, read_topology()) if _variant.transport == "shared" else NoKernel()
        self.servicer = ExpertServicer(checkpoint, Runner(checkpoint, kernel), dtype=dtype, settings=settings)
        self.servicer.share_memory()  # only the native kernel does

    def unary(self, request: experts_pb2.RunRequest, context: grpc.ServicerContext) -> experts_pb2.RunResponse:
        return next(self.servicer.Run(iter((request,)), context))

    async def aio(
        self, requests: AsyncIterator[experts_pb2.RunRequest], context: Any
    ) -> AsyncIterator[experts_pb2.RunResponse]:
        async for request in requests:
            yield self.unary(request, context)

    @staticmethod
    def bare(requests: _Requests, context: grpc.ServicerContext) -> _Answers:
        for request in requests:
            response = experts_pb2.RunResponse(sequence=request.sequence)
            response.output.data = request.hidden.data
            yield response

    def generic(self) -> grpc.GenericRpcHandler:
        """The methods that ExpertService does not have."""
        coders: dict[str, Any] = {
            "request_deserializer": experts_pb2.RunRequest.FromString,
            "response_serializer": experts_pb2.RunResponse.SerializeToString,
        }
        streams: dict[str, Any] = {"bare": self.bare, "aio": self.aio}
        methods = {name: grpc.stream_stream_rpc_method_handler(handle, **coders) for name, handle in streams.items()}
        methods["unary"] = grpc.unary_unary_rpc_method_handler(self.unary, **coders)
        return grpc.method_handlers_generic_handler(wire.SERVICE, methods)


def _serve(handlers: _Handlers, address: str) -> None:
    server = grpc.server(ThreadPoolExecutor(12), options=rpc.server_options(MAX_MESSAGE_BYTES))
    experts_pb2_grpc.add_ExpertServiceServicer_to_server(handlers.servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    server.add_generic_rpc_handlers((handlers.generic(),))
    listen.bind(server, address)
    server.start()
    print("ready", flush=True)
    server.wait_for_termination()


async def _serve_aio(handlers: _Handlers, address: str) -> None:
    server = grpc.aio.server(options=rpc.server_options(MAX_MESSAGE_BYTES))
    server.add_generic_rpc_handlers((handlers.generic(),))
    listen.bind(server, address)
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


def _serve_raw(path: str) -> None:
    buffer = wire.new_buffer()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        connection, _ = listener.accept()
        with connection:
            while size := wire.receive(connection, buffer):
                connection.sendall(buffer[:size])


def main() -> None:
    """Serves until it is killed."""
    directory = Path(sys.argv[2])
    path = directory / f"{_variant.name}.sock"
    if _variant.transport == "raw":
        _serve_raw(str(path))
    elif _variant.transport == "aio":
        asyncio.run(_serve_aio(_Handlers(directory, f"unix:{path}"), f"unix:{path}"))
    else:
        _serve(_Handlers(directory, f"unix:{path}"), f"unix:{path}")


if __name__ == "__main__":
    main()
