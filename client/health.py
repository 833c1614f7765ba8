"""Asks for a server's health: `python -m client.health ADDRESS`.

Containers run this every few seconds, in the CPU expert service's image too, which has neither Typer nor rich. It
therefore parses its arguments with argparse: importing Typer takes 46 ms, argparse 8 ms, and this whole module 109 ms.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, Unpack

from fiddler.running import interrupts

with interrupts.quiet():
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from client._connection import (
        DEFAULT_KEEPALIVE_SECONDS,
        DEFAULT_MAX_MESSAGE_BYTES,
        channel_options,
        checked_target,
        checked_timeout,
        credentials,
    )
    from client._errors import ClientError, DeadlineError, InvalidRequestError, UnavailableError
    from client._options import TlsOptions, options_of
    from client._statuses import error_from
    from client._unreachable import Peer
    from fiddler import rpc

SERVING = 0
NOT_SERVING = 1
USAGE = 2
NO_ANSWER = 3

_EPILOG = "exit status: 0 SERVING; 1 not serving, or unknown; 2 wrong usage; 3 no answer"


def ask_health(target: str, service: str = "", *, timeout: float = 5.0, **tls_options: Unpack[TlsOptions]) -> str:
    """Asks for the health of a service, or of the whole server if no service is named. No token is needed.

    Returns:
        The status of grpc.health.v1, e.g. "SERVING"; "SERVICE_UNKNOWN" if the server does not know the service.

    Raises:
        ClientError: The call failed.
    """
    options = channel_options(
        checked_target(target),
        max_message_bytes=DEFAULT_MAX_MESSAGE_BYTES,
        keepalive_seconds=DEFAULT_KEEPALIVE_SECONDS,
        tls_server_name=tls_options.get("tls_server_name"),
    )
    request = health_pb2.HealthCheckRequest(service=service)
    dialled = rpc.target(target)
    channel_credentials = credentials(target, tls_options)
    with (
        grpc.insecure_channel(dialled, options)
        if channel_credentials is None
        else grpc.secure_channel(dialled, channel_credentials, options) as channel
    ):
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its published types lack its methods
        try:
            response = stub.Check(request, timeout=checked_timeout(timeout))
        except grpc.RpcError as rpc_error:
            error = error_from(rpc_error)
            if error.code is grpc.StatusCode.NOT_FOUND:
                return "SERVICE_UNKNOWN"
            if isinstance(error, UnavailableError):
                error = Peer(target, is_encrypted=channel_credentials is not None).explained(error)
            raise error from rpc_error
    return health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the status and returns the exit status."""
    parsed = _parser().parse_args(arguments)
    tls_options: Any = {name: getattr(parsed, name) for name in options_of(TlsOptions)}
    try:
        status = ask_health(parsed.address, parsed.service, timeout=parsed.timeout, **tls_options)
    except ClientError as error:
        print("client.health:", " ".join(error.message.split()), file=sys.stderr)
        if isinstance(error, InvalidRequestError):
            return USAGE
        return NO_ANSWER if isinstance(error, UnavailableError | DeadlineError) else NOT_SERVING
    print(status)
    return SERVING if status == "SERVING" else NOT_SERVING


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m client.health", description="Asks a server for its grpc.health.v1 status.", epilog=_EPILOG
    )
    parser.add_argument("address", metavar="ADDRESS", help="Where the server listens: HOST:PORT or unix:PATH.")
    parser.add_argument("--service", default="", help="The service to ask about. Default: the whole server.")
    parser.add_argument("--timeout", type=float, default=5.0, help="Seconds to wait for the answer. Default: 5.")
    for name, (kind, option) in options_of(TlsOptions).items():
        flag = f"--{name.replace('_', '-')}"
        if kind is bool:
            parser.add_argument(flag, action="store_true", help=option.help)
        else:
            parser.add_argument(flag, metavar="NAME" if name == "tls_server_name" else "FILE", help=option.help)
    return parser


if __name__ == "__main__":
    sys.exit(main())
