"""What callers reach: a gRPC server at an address, with health and reflection.

A Unix socket that somebody removed is bound again, by one more server, because gRPC cannot bind one that has started.
Calls of the former server go on.
"""

import asyncio

import grpc
import structlog
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from fiddler import listen, rpc
from fiddler.errors import UserError
from fiddler.v1 import generation_pb2, generation_pb2_grpc
from gpu_service import metrics
from gpu_service.api import expert_health, vllm
from gpu_service.api.auth import Access
from gpu_service.api.guard import Guard
from gpu_service.api.service import GenerationServicer
from gpu_service.settings import Settings

SERVICE = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"].full_name
NAMES = ("", SERVICE)
"""The names of this service's health; that of the CPU expert service has one of its own."""

_LOOK_SECONDS = 2.0
_MOST_SERVERS = 4
_log = structlog.get_logger("gpu_service")


class Front:
    """Serves one servicer from `start` to `stop`. For the event loop's thread."""

    def __init__(
        self,
        settings: Settings,
        access: Access,
        *,
        servicer: GenerationServicer,
        health_servicer: health.aio.HealthServicer,
        max_request_bytes: int,
    ) -> None:
        """Serves nothing yet.

        Raises:
            UserError: The settings name a service whose package is not installed.
        """
        self._further = [vllm.service_of(servicer)] if settings.vllm_engine else []
        self._settings = settings
        self._access = access
        self._servicer = servicer
        self._health = health_servicer
        self._max_request_bytes = max_request_bytes
        self._guard = Guard((*NAMES, expert_health.SERVICE), *(each.descriptor for each in self._further))
        self._servers: list[grpc.aio.Server] = []
        self._listener = listen.Listener(settings.listen)
        self._looking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listens.

        Raises:
            UserError: The address is taken, or cannot be served at.
        """
        server = self._bind()
        self._publish_expiries()
        if self._access.certificates:
            self._access.certificates.on_change(self._publish_expiries)
        for warning in self._access.warnings(self._settings.listen):
            _log.warning(warning, address=self._settings.listen)
        await self._start(server)
        self._looking = asyncio.create_task(self._look())

    def remove(self) -> None:
        """Removes the socket, if it is one, so that new callers find none. Connections stay."""
        if self._looking is not None:
            self._looking.cancel()
        self._listener.remove()

    async def stop(self, grace_seconds: float) -> None:
        """Ends the calls under way after a time."""
        await asyncio.gather(*(server.stop(grace_seconds) for server in self._servers))

    def _publish_expiries(self) -> None:
        for option, at in self._access.expiries.items():
            metrics.CERTIFICATE_EXPIRY.labels(option).set(at)

    def _bind(self) -> grpc.aio.Server:
        server = grpc.aio.server(
            interceptors=[*self._access.interceptors, self._guard],
            options=[
                *rpc.server_options(self._max_request_bytes, self._settings.max_message_bytes),
                *rpc.public_options(),
            ],
        )
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(self._servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        for each in self._further:
            each.add(server)
        names = [SERVICE, *(each.descriptor.full_name for each in self._further)]
        reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
        self._listener = listen.bind(server, self._settings.listen, self._access.credentials())
        return server

    async def _start(self, server: grpc.aio.Server) -> None:
        self._servers.append(server)
        await server.start()
        if len(self._servers) > _MOST_SERVERS:
            await self._servers.pop(0).stop(None)

    async def _look(self) -> None:
        """Binds the socket again whenever it is gone; the log says so, or once why that is not possible."""
        problem = ""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            if self._listener.is_in_place:
                problem = ""
                continue
            try:
                await self._start(self._bind())
            except UserError as error:
                if str(error) != problem:
                    problem = str(error)
                    _log.error("binding the socket again failed", reason=problem)
            else:
                _log.warning("the socket was removed; bound again", address=self._settings.listen)
