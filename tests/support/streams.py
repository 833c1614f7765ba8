"""A caller of ExpertService that sends and reads one message at a time."""

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
import torch

from fiddler import tensors
from fiddler.v1 import experts_pb2, experts_pb2_grpc

TIMEOUT_SECONDS = 60
HIDDEN_SIZE = 64


def ask(
    sequence: int = 1, *, layer: int = 0, rows: int = 2, k: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32
) -> experts_pb2.RunRequest:
    """A request that the tiny checkpoint's service answers."""
    generator = torch.Generator().manual_seed(seed)
    request = experts_pb2.RunRequest(sequence=sequence, layer=layer)
    tensors.encode(torch.randn(rows, HIDDEN_SIZE, generator=generator).to(dtype), request.hidden)
    tensors.encode(torch.randint(-1, 8, (rows, k), generator=generator, dtype=torch.int32), request.expert_ids)
    tensors.encode(torch.rand(rows, k, generator=generator), request.routing_weights)
    return request


class Stream:
    """One call of Run."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._requests: queue.SimpleQueue[experts_pb2.RunRequest | None] = queue.SimpleQueue()
        requests = iter(self._requests.get, None)
        self.call: Any = experts_pb2_grpc.ExpertServiceStub(channel).Run(requests, timeout=TIMEOUT_SECONDS)

    def send(self, request: experts_pb2.RunRequest) -> None:
        self._requests.put(request)

    def receive(self) -> experts_pb2.RunResponse:
        response: experts_pb2.RunResponse = next(self.call)
        return response

    def works(self, sequence: int = 7) -> bool:
        """Whether it answers."""
        self.send(ask(sequence))
        return self.receive().sequence == sequence

    def fails(self, *requests: experts_pb2.RunRequest) -> Any:
        """The error that these requests end it with."""
        for request in requests:
            self.send(request)
        with pytest.raises(grpc.RpcError) as caught:
            self.receive()
        return caught.value

    def finish(self) -> None:
        """Ends the stream, and asserts that the call ends well without further responses."""
        self._requests.put(None)
        assert list(self.call) == []
        assert self.call.code() is grpc.StatusCode.OK

    def close(self) -> None:
        """Cancels the call, in any state."""
        self.call.cancel()
        self._requests.put(None)


@contextmanager
def stream(channel: grpc.Channel) -> Iterator[Stream]:
    """A stream that is closed at the end."""
    opened = Stream(channel)
    try:
        yield opened
    finally:
        opened.close()
