"""What is compared. Imports nothing that reads the environment."""

import json
from dataclasses import asdict, dataclass
from typing import Literal, Self

Transport = Literal["raw", "bare", "stream", "unary", "aio", "shared"]


@dataclass(frozen=True, slots=True)
class Variant:
    """How the two processes speak, and what their processes are set to."""

    name: str
    transport: Transport
    prepared: bool = True
    """Whether the processes are set as the services' are: fiddler.process."""
    cores: tuple[int, int] | None = None
    """The one core that the client and the server may use each; None: all."""
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
    Variant("shared_memory", "shared"),
)
"""
raw                     Bytes to and fro on a Unix socket: the floor.
bare_stream             gRPC and protobuf alone: messages are made beforehand, answers not read.
sync_stream             What the services do.
sync_stream_in_service  The same, in a process that has a grpc.aio server, from a thread beside it.
sync_stream_unprepared  The same, without fiddler.process.
sync_stream_pinned      The same, each process on a core of its own.
unary                   A call for each message.
aio_stream              grpc.aio on both sides.
shared_memory           A prototype: rows in memory that both map, the message only says how many.
"""
