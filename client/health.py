"""Asks a server's health: `python -m client.health ADDRESS`. For probes, so it is light and never a generation."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from client._base import DEFAULT_KEEPALIVE_SECONDS, DEFAULT_MAX_MESSAGE_BYTES
from client._connection import channel_options, checked_target, checked_timeout
from client._errors import ClientError, DeadlineError, InvalidRequestError, UnavailableError
from client._statuses import error_from

SERVING = 0
NOT_SERVING = 1
USAGE = 2
NO_ANSWER = 3

_EPILOG = "exit status: 0 SERVING; 1 not serving, or not known; 2 wrong usage; 3 nothing answers"


def ask_health(target: str, service: str = "", timeout: float = 5.0) -> str:
    """Asks for the health of a service, or of the server where no service is named.

    Returns:
        The status word of grpc.health.v1, e.g. "SERVING"; "SERVICE_UNKNOWN" where the server does not know the service.

    Raises:
        ClientError: There is no answer, or none to this question.
    """
    options = channel_options(checked_target(target), DEFAULT_MAX_MESSAGE_BYTES, DEFAULT_KEEPALIVE_SECONDS)
    question = health_pb2.HealthCheckRequest(service=service)
    with grpc.insecure_channel(target, options) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # whose published types lack its methods
        try:
            answer = stub.Check(question, timeout=checked_timeout(timeout))
        except grpc.RpcError as rpc_error:
            error = error_from(rpc_error)
            if error.code is grpc.StatusCode.NOT_FOUND:
                return "SERVICE_UNKNOWN"
            raise error from rpc_error
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the status word and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m client.health", description="Asks a server for its grpc.health.v1 status.", epilog=_EPILOG
    )
    parser.add_argument("address", metavar="ADDRESS", help="where it listens: HOST:PORT or unix:PATH")
    parser.add_argument("--service", default="", help="the service to ask about (default: the server as a whole)")
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds to wait for the answer (default: 5)")
    options = parser.parse_args(arguments)
    try:
        status = ask_health(options.address, options.service, options.timeout)
    except ClientError as error:
        print("client.health:", " ".join(error.message.split()), file=sys.stderr)
        if isinstance(error, InvalidRequestError):
            return USAGE
        return NO_ANSWER if isinstance(error, UnavailableError | DeadlineError) else NOT_SERVING
    print(status)
    return SERVING if status == "SERVING" else NOT_SERVING


if __name__ == "__main__":
    sys.exit(main())
