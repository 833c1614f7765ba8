"""What callers reach: a gRPC server at an address, and the health that it reports.

A Unix socket that somebody removed is bound again, by one more server, because gRPC cannot bind one that has started.
Calls of the former server go on.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cpu_expert_service.calls.guard import Guard, num_threads
from cpu_expert_service.service import ExpertServicer
from cpu_expert_service.settings import Settings
from fiddler import listen, rpc
from fiddler.errors import UserError
from fiddler.v1 import experts_pb2, experts_pb2_grpc

_SERVICE = experts_pb2.DESCRIPTOR.services_by_name["ExpertService"].full_name
_NAMES = ("", _SERVICE)
_LOOK_SECONDS = 2.0
_MOST_SERVERS = 4
_log = structlog.get_logger("cpu_expert_service")


class Front:
    """Serves one servicer from the start to `stop`."""

    def __init__(self, settings: Settings, servicer: ExpertServicer) -> None:
        """Serves nothing yet."""
        self._settings = settings
        self._servicer = servicer
        self._guard = Guard(_NAMES)
        self._health = health.HealthServicer(experimental_non_blocking=True)
        self.set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        self._servers: list[grpc.Server] = []
        self._listener = listen.Listener(settings.listen)
        self._problem = ""
        self._stopping = threading.Event()
        self._looking = threading.Thread(target=self._look, name="socket", daemon=True)

    def start(self) -> None:
        """Listens, and reports that the service is not ready.

        Raises:
            UserError: The address is taken, or cannot be served at.
        """
        if not rpc.is_local(self._settings.listen):
            _log.warning(
                "hidden rows cross the network unencrypted, and anyone who reaches the address may call;"
                " --listen unix:PATH or 127.0.0.1:PORT restricts it to this host",
                address=self._settings.listen,
            )
        self._bind()
        self._looking.start()

    def count(self) -> None:
        """Counts what came through shared memory and is not counted yet."""
        if (segments := self._servicer.segments) is not None:
            segments.drain()

    def set_health(self, status: int) -> None:
        """Reports a status from now on."""
        self.is_serving = status == health_pb2.HealthCheckResponse.SERVING
        for name in _NAMES:
            self._health.set(name, status)

    def stop(self, grace_seconds: float) -> None:
        """Takes no new call, and waits for those under way to end, for a time at most."""
        self.is_serving = False
        self._health.enter_graceful_shutdown()
        self._stopping.set()
        self._looking.join()
        self._listener.remove()
        self._servicer.end_idle_streams()
        for stopped in [server.stop(grace_seconds) for server in self._servers]:
            stopped.wait()

    def _bind(self) -> None:
        server = grpc.server(
            ThreadPoolExecutor(num_threads(self._settings.max_streams), thread_name_prefix="grpc"),
            interceptors=[self._guard],
            options=rpc.server_options(self._settings.max_message_bytes),
        )
        experts_pb2_grpc.add_ExpertServiceServicer_to_server(self._servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if self._settings.reflection:
            reflection.enable_server_reflection([_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
        self._listener = listen.bind(server, self._settings.listen)
        server.start()
        self._servers.append(server)
        if len(self._servers) > _MOST_SERVERS:
            self._servers.pop(0).stop(None)

    def _look(self) -> None:
        """Binds the socket again whenever it is gone; the log says so, or once why that is not possible."""
        while not self._stopping.wait(_LOOK_SECONDS):
            if self._listener.is_in_place:
                self._problem = ""
                continue
            try:
                self._bind()
            except UserError as error:
                if str(error) != self._problem:
                    self._problem = str(error)
                    _log.error("binding the socket again failed", reason=self._problem)
            else:
                _log.warning("the socket was removed; bound again", address=self._settings.listen)
