"""gRPC as both services use it: addresses, Unix sockets, options, and errors as statuses with google.rpc details."""

import contextlib
import os
import re
import socket
import stat
from pathlib import Path
from typing import Any, NoReturn

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

_MAX_SOCKET_PATH_BYTES = 107  # sockaddr_un holds 108 with the terminating zero
_STATUS_DETAILS_KEY = "grpc-status-details-bin"


class StatusError(Exception):
    """A call that is answered with a status. Raised where a message is checked, turned into a status in the handler."""

    def __init__(self, code: grpc.StatusCode, message: str, *details: Message) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details

    @property
    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        """The google.rpc.Status, as gRPC's convention carries it."""
        if not self.details:
            return ()
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        for detail in self.details:
            status.details.add().Pack(detail)
        return ((_STATUS_DETAILS_KEY, status.SerializeToString()),)

    def abort(self, context: grpc.ServicerContext) -> NoReturn:
        """Ends a synchronous handler's call with this status."""
        context.set_trailing_metadata(self.trailing_metadata)
        context.abort(self.code, self.message)

    async def abort_async(self, context: "grpc.aio.ServicerContext[Any, Any]") -> NoReturn:
        """Ends an asynchronous handler's call with this status."""
        await context.abort(self.code, self.message, self.trailing_metadata)


def invalid_argument(field: str, problem: str) -> StatusError:
    """A field of the request is wrong.

    Args:
        field: The field's path in the request, by its proto names, e.g. "sampling.top_p".
        problem: What is wrong with it, e.g. "must be above 0 and at most 1, got 7".
    """
    violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=problem)
    return StatusError(
        grpc.StatusCode.INVALID_ARGUMENT,
        f"{field}: {problem}",
        error_details_pb2.BadRequest(field_violations=[violation]),
    )


def failed_precondition(subject: str, problem: str) -> StatusError:
    """The two sides do not fit together.

    Args:
        subject: What differs, e.g. "checkpoint_fingerprint".
        problem: A sentence with both values.
    """
    violation = error_details_pb2.PreconditionFailure.Violation(type="MISMATCH", subject=subject, description=problem)
    return StatusError(
        grpc.StatusCode.FAILED_PRECONDITION,
        problem,
        error_details_pb2.PreconditionFailure(violations=[violation]),
    )


def is_serving(channel: grpc.Channel, timeout_seconds: float) -> bool:
    """Whether the server of a channel answers grpc.health.v1 and is ready."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    try:
        response = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_seconds)
    except grpc.RpcError:
        return False
    return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


def check_address(address: str) -> str:
    """Returns the address, or raises ValueError where it is neither HOST:PORT nor unix:PATH."""
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        if not path or path.endswith("/") or "\0" in path:
            raise ValueError(f"{address!r} names no socket; expected unix:PATH")
        if len(os.fsencode(path)) > _MAX_SOCKET_PATH_BYTES:
            raise ValueError(f"socket path {path} is over {_MAX_SOCKET_PATH_BYTES} bytes, the most that Linux takes")
        return address
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\s\[\]]+):(\d{1,5})", address)
    if not match or int(match[2]) > 65535:
        raise ValueError(f"{address!r} is no address; expected HOST:PORT or unix:PATH")
    return address


def message_size_options(max_message_bytes: int) -> list[tuple[str, int]]:
    """Channel or server options that bound messages both ways. gRPC's own default is 4 MiB."""
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
    ]


def server_options(max_message_bytes: int) -> list[tuple[str, int]]:
    """Options of both services' servers."""
    # without the second, gRPC lets two servers listen on one port, and each gets some of the calls
    return [*message_size_options(max_message_bytes), ("grpc.so_reuseport", 0)]


def bind(server: grpc.Server | grpc.aio.Server, address: str) -> None:
    """Binds a server to an address. A socket's directory is made where it is missing, mode 0700.

    Raises:
        OSError: The address is taken, or the socket's directory cannot be made.
    """
    _make_way(address)
    try:
        server.add_insecure_port(address)
    except RuntimeError:
        raise OSError(f"--listen: cannot serve on {address}; is it taken?") from None


def _make_way(address: str) -> None:
    """Makes a socket's directory, and removes the socket of a server that died without removing it."""
    if not address.startswith("unix:"):
        return
    path = Path(address.removeprefix("unix:"))
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(f"{path} is there and is no socket")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        else:
            raise FileExistsError(f"{path} is served by another process")


def remove_listen_address(address: str) -> None:
    """Removes the socket of a server that has stopped."""
    if address.startswith("unix:"):
        with contextlib.suppress(FileNotFoundError):
            Path(address.removeprefix("unix:")).unlink()
