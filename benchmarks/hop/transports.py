"""The client's side of each variant behind one interface: submit a message, join its answer."""

import asyncio
import queue
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import grpc
import torch

from benchmarks.hop import wire
from benchmarks.hop.messages import MAX_MESSAGE_BYTES, TIMEOUT_SECONDS, Message
from benchmarks.hop.variants import Variant
from fiddler import rpc, tensors
from fiddler.checkpoint import Checkpoint
from fiddler.v1 import experts_pb2
from gpu_service.cpu_experts.client import ExpertClient

_CODERS: dict[str, Any] = {
    "request_serializer": experts_pb2.RunRequest.SerializeToString,
    "response_deserializer": experts_pb2.RunResponse.FromString,
}
_OPTIONS = rpc.message_size_options(MAX_MESSAGE_BYTES)


class Transport(Protocol):
    """One connection, with one message at a time."""

    def submit(self, message: Message) -> None:
        """Sends it."""

    def join(self) -> object:
        """Waits for the answer and unpacks it."""


def _decode(response: experts_pb2.RunResponse, message: Message) -> torch.Tensor:
    return tensors.decode(response.output, "output", dtype=torch.bfloat16, shape=tuple(message.hidden.shape))


class _Raw:
    def __init__(self, path: Path) -> None:
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(str(path))
        self._buffer = wire.new_buffer()
        self._frames: dict[int, bytes] = {}

    def submit(self, message: Message) -> None:
        frame = self._frames.get(id(message))
        if frame is None:
            frame = self._frames[id(message)] = wire.frame(message.encode().SerializeToString())
        self._connection.sendall(frame)

    def join(self) -> object:
        return wire.receive(self._connection, self._buffer)


class _Stream:
    """The GPU service's own client."""

    def __init__(self, address: str, fingerprint: str) -> None:
        self._client = ExpertClient(
            address, torch.bfloat16, timeout_seconds=TIMEOUT_SECONDS, max_message_bytes=MAX_MESSAGE_BYTES
        )
        self._client.connect(fingerprint)

    def submit(self, message: Message) -> None:
        self._call = self._client.submit(
            0, message.hidden, expert_ids=message.expert_ids, routing_weights=message.routing_weights
        )

    def join(self) -> object:
        return self._call.join()


class _BareStream:
    """A stream as in ExpertClient, without its other code."""

    method = "bare"

    def __init__(self, address: str) -> None:
        self._outbox: queue.SimpleQueue[experts_pb2.RunRequest | None] = queue.SimpleQueue()
        self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        method: Any = self._channel.stream_stream(f"/{wire.SERVICE}/{self.method}", **_CODERS)
        self._call: Iterator[experts_pb2.RunResponse] = method(iter(self._outbox.get, None))
        self._requests: dict[int, experts_pb2.RunRequest] = {}

    def submit(self, message: Message) -> None:
        request = self._requests.get(id(message))
        if request is None:
            request = self._requests[id(message)] = message.encode()
        self._outbox.put(request)

    def join(self) -> object:
        return next(self._call)


class _Shared(_Stream):
    """The same through shared memory; no row chooses an expert, so that the native kernel has nothing to compute."""

    def __init__(self, address: str, fingerprint: str) -> None:
        super().__init__(address, fingerprint)
        self._idle: dict[int, Message] = {}

    def submit(self, message: Message) -> None:
        idle = self._idle.get(id(message))
        if idle is None:
            idle = self._idle[id(message)] = replace(message, expert_ids=torch.full_like(message.expert_ids, -1))
        super().submit(idle)
        assert self._call.slot is not None, "it went over the socket"


class _Unary:
    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        self._call: Any = self._channel.unary_unary(f"/{wire.SERVICE}/unary", **_CODERS)

    def submit(self, message: Message) -> None:
        self._message, self._request = message, message.encode()

    def join(self) -> object:
        return _decode(self._call(self._request), self._message)


class _Aio:
    """grpc.aio in an event loop that the calling thread runs."""

    def __init__(self, address: str) -> None:
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._open(address))

    async def _open(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        method: Any = self._channel.stream_stream(f"/{wire.SERVICE}/aio", **_CODERS)
        self._call = method()

    def submit(self, message: Message) -> None:
        self._message = message
        self._loop.run_until_complete(self._call.write(message.encode()))

    def join(self) -> object:
        return _decode(self._loop.run_until_complete(self._call.read()), self._message)


def connect(variant: Variant, directory: Path) -> Transport:
    """Connects to the variant's server, which must be running."""
    path = directory / f"{variant.name}.sock"
    address = f"unix:{path}"
    match variant.transport:
        case "raw":
            return _Raw(path)
        case "bare":
            return _BareStream(address)
        case "stream":
            return _Stream(address, Checkpoint.open(directory).fingerprint)
        case "unary":
            return _Unary(address)
        case "aio":
            return _Aio(address)
        case "shared":
            return _Shared(address, Checkpoint.open(directory).fingerprint)
