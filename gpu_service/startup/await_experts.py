"""Waits at the start until the CPU expert service serves the same checkpoint."""

import asyncio
import time

import structlog

from fiddler.v1 import experts_pb2
from gpu_service.cpu_experts.client import ExpertClient
from gpu_service.errors import ExpertServiceError, HandshakeError

_POLL_SECONDS = 0.2
_CONNECT_SECONDS = 2.0
_REMIND_SECONDS = 5.0
_log = structlog.get_logger("gpu_service")


async def await_experts(client: ExpertClient, address: str, fingerprint: str) -> experts_pb2.DescribeResponse:
    """Shakes hands as soon as the service is ready; the log says every few seconds that it is not.

    Args:
        client: Reaches it.
        address: Where it is, for the log.
        fingerprint: Of the checkpoint that it must serve.

    Raises:
        HandshakeError: It serves another checkpoint or dtype.
    """
    reminded = time.monotonic()
    _log.info("waiting for the CPU expert service", address=address)
    while True:
        try:
            return await asyncio.to_thread(client.connect, fingerprint, _CONNECT_SECONDS)
        except HandshakeError:
            raise
        except ExpertServiceError as error:
            why = str(error)
        if time.monotonic() - reminded >= _REMIND_SECONDS:
            reminded = time.monotonic()
            _log.info("still waiting for the CPU expert service", address=address, reason=why)
        await asyncio.sleep(_POLL_SECONDS)
