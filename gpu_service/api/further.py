"""A gRPC service beside GenerationService at the same address."""

from collections.abc import Callable
from typing import Any, NamedTuple

import grpc


class FurtherService(NamedTuple):
    """A service, and how a server gets it."""

    descriptor: Any
    """Its protobuf ServiceDescriptor."""
    add: Callable[[grpc.aio.Server], object]
    """Adds its handlers to a server."""
