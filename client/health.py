"""Asks a server's health: `python -m client.health ADDRESS`. For probes, so it is light and never a generation."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, Unpack

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
from client._options import TlsOptions
from client._statuses import error_from

SERVING = 0
NOT_SERVING = 1
USAGE = 2
NO_ANSWER = 3

_EPILOG = "exit status: 0 SERVING; 1 not serving, or not known; 2 wrong usage; 3 nothing answers"


def ask_health(target: str, service: str = "", timeout: float = 5.0, **tls_options: Unpack[TlsOptions]) -> str:
    """Asks for the health of a service, or of the server where no service is named. No token is needed.

    Returns:
        The status word of grpc.health.v1, e.g. "SERVING"; "SERVICE_UNKNOWN" where the server does not know the service.

    Raises:
        ClientError: There is no answer, or none to this question.
    """
    options = channel_options(
        checked_target(target),
        DEFAULT_MAX_MESSAGE_BYTES,
        DEFAULT_KEEPALIVE_SECONDS,
        tls_server_name=tls_options.get("tls_server_name"),
    )
    question = health_pb2.HealthCheckRequest(service=service)
    secret = credentials(target, tls_options)
    with (
        grpc.insecure_channel(target, options)
        if secret is None
        else grpc.secure_channel(target, secret, options) as channel
    ):
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
    options = _parser().parse_args(arguments)
    tls_options: TlsOptions = {
        "tls": options.tls,
        "tls_ca": options.tls_ca,
        "tls_cert": options.tls_cert,
        "tls_key": options.tls_key,
        "tls_server_name": options.tls_server_name,
    }
    try:
        status = ask_health(options.address, options.service, options.timeout, **tls_options)
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
    parser.add_argument("address", metavar="ADDRESS", help="where it listens: HOST:PORT or unix:PATH")
    parser.add_argument("--service", default="", help="the service to ask about (default: the server as a whole)")
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds to wait for the answer (default: 5)")
    parser.add_argument("--tls", action="store_true", help="use TLS and believe the public authorities")
    parser.add_argument("--tls-ca", metavar="FILE", help="use TLS and believe these authorities, PEM")
    parser.add_argument("--tls-cert", metavar="FILE", help="the certificate to show the server, PEM")
    parser.add_argument("--tls-key", metavar="FILE", help="its private key, PEM")
    parser.add_argument("--tls-server-name", metavar="NAME", help="the name that the server's certificate is for")
    return parser


if __name__ == "__main__":
    sys.exit(main())
