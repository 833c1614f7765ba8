"""What both services' metrics have in common: one registry per process, build information, /metrics over HTTP."""

import platform

import torch
from prometheus_client import REGISTRY, CollectorRegistry, Info, start_http_server

from fiddler import __version__

LATENCY_BUCKETS = (
    5e-5, 1e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0,
)  # fmt: skip
"""Seconds, from the round trip of an empty message to a long prefill on a slow CPU."""


def set_build_info(service: str, **labels: str) -> None:
    """Publishes fiddler_build_info of this process."""
    info = Info("fiddler_build", "Versions of the software and of what it computes with.")
    info.info(
        {
            "service": service,
            "version": __version__,
            "python_version": platform.python_version(),
            "torch_version": torch.__version__,
            **labels,
        }
    )


def serve(host: str, port: int, registry: CollectorRegistry = REGISTRY) -> None:
    """Serves /metrics from a daemon thread; port 0 serves none.

    Raises:
        OSError: The address cannot be bound.
    """
    if port == 0:
        return
    try:
        start_http_server(port, host, registry)
    except OSError as error:
        raise OSError(f"--metrics-port: cannot serve on {host}:{port}: {error.strerror}") from error
