"""The variants that are compared. This module imports nothing that reads the environment."""

import json
from dataclasses import asdict, dataclass
from typing import Literal, Self

Transport = Literal["raw", "bare", "stream", "unary", "aio", "shared"]


@dataclass(frozen=True, slots=True)
class Variant:
    """How the two processes communicate, and how they are set up."""

    name: str
    transport: Transport
    prepared: bool = True
    """Whether the processes are set up as the services are, by fiddler.process."""
    cores: tuple[int, int] | None = None
    """The core that the client may use, and the server's; None: all cores."""
    in_service: bool = False
    """Whether the client's process also runs a grpc.aio server, as the GPU service does."""

    def to_json(self) -> str:
        """For a child's command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of to_json."""
        return cls(**json.loads(text))


VARIANTS = (
    Variant("raw", "raw"),
    Variant("bare_stream", "bare"),
    Variant("sync_stream", "stream"),
    Variant("sync_stream_in_service", "stream", in_service=True),
    Variant("sync_stream_unprepared", "stream", prepared=False),
    Variant("sync_stream_pinned", "stream", cores=(0, 1)),
    Variant("unary", "unary"),
    Variant("aio_stream", "aio"),
    Variant("shared", "shared"),
    Variant("shared_in_service", "shared", in_service=True),
)
"""
raw                     Bytes over a Unix socket in both directions: the lower bound.
bare_stream             gRPC and protobuf alone: messages are encoded beforehand, answers are not decoded.
sync_stream             The services' own way where they cannot share memory.
sync_stream_in_service  The same, from a thread of a process that also runs a grpc.aio server.
sync_stream_unprepared  The same, without fiddler.process.
sync_stream_pinned      The same, with each process pinned to a core.
unary                   One call for each message.
aio_stream              grpc.aio on both sides.
shared                  The services' own way on one host: messages are posted in memory that both processes map.
shared_in_service       The same, from a thread of a process that also runs a grpc.aio server.
"""
