"""The child processes, controlled from outside: by command line, health checks and signals."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import grpc

from fiddler import rpc
from fiddler.running.modules import command_of
from fiddler.running.parent import VARIABLE as ENDS_WITH
from fiddler.transport.ports import PortTakenError, check_free, listens, reserve
from pair._errors import PairError
from pair._tls import TlsTarget

_POLL_SECONDS = 0.05
_PREFIX = "fiddler-"
_OTHER_DIRECTORIES = ("/tmp", "/run/user/" + str(os.getuid()), "/dev/shm", "/var/tmp")
"""Where the socket goes if $TMPDIR cannot hold it."""


def _socket_in(directory: Path) -> str:
    return f"unix:{directory}/experts.sock"


def _socket_directory() -> Path:
    """A new directory for the socket, of mode 0700.

    It is in $TMPDIR, unless the path would be too long for a socket or has characters that gRPC cannot connect to.
    """
    problem = ""
    for parent in dict.fromkeys((tempfile.gettempdir(), *_OTHER_DIRECTORIES)):
        try:
            rpc.check_address(_socket_in(Path(parent, f"{_PREFIX}{'x' * 8}")))
            return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        except (ValueError, OSError) as error:
            problem = problem or str(error)
    raise PairError(f"no directory for the socket between the services; set TMPDIR to a short one: {problem}")


class Pair:
    """Both services, running within `with Pair(...) as pair:`.

    Tests and benchmarks break a pair by stopping a service and starting it again, or by starting only one.
    """

    def __init__(
        self,
        model: Path,
        *,
        listen: str | None = None,
        metrics_ports: tuple[int, int] | None = None,
        gpu_arguments: Sequence[str] = (),
        cpu_arguments: Sequence[str] = (),
        http: str | None = None,
        http_arguments: Sequence[str] = (),
        certificate: Path | None = None,
        environment: Mapping[str, str] | None = None,
        log: IO[bytes] | int | None = None,
    ) -> None:
        """Prepares; nothing is started yet.

        Args:
            model: The directory of the checkpoint.
            listen: The address of the GPU service; None takes a free port of the loopback interface.
            metrics_ports: The ports of the GPU service's and the CPU expert service's /metrics; None takes free ones.
            gpu_arguments: More flags for the GPU service.
            cpu_arguments: More flags for the CPU expert service.
            http: The address of the HTTP gateway, which is started after the services; None starts none.
            http_arguments: More flags for the HTTP gateway.
            certificate: The PEM file of the certificate that `gpu_arguments` lets the GPU service present, followed by
                those up to its root; None if the GPU service serves without TLS.
            environment: Added to this process's environment.
            log: Where all processes log, as subprocess takes it; None is standard error.

        Raises:
            PairError: There is no directory that a socket can be made in, or the certificate cannot be read.
        """
        self._tls = None if certificate is None else TlsTarget.read(certificate)  # before a directory is made
        self._directory = _socket_directory()
        self.experts = _socket_in(self._directory)
        self._reserved: list[socket.socket] = []
        self.target = listen or f"127.0.0.1:{self._free_port()}"
        self.gpu_metrics_port, self.cpu_metrics_port = metrics_ports or (self._free_port(), self._free_port())
        self._commands = {
            "gpu_service": [
                *("--model", str(model), "--experts", self.experts, "--listen", self.target),
                *("--metrics-port", str(self.gpu_metrics_port), *gpu_arguments),
            ],
            "cpu_expert_service": [
                *("--model", str(model), "--listen", self.experts),
                *("--metrics-port", str(self.cpu_metrics_port), *cpu_arguments),
            ],
        }
        self.http = http
        if http is not None:
            self._commands["http_gateway"] = [
                *("--target", self.target, "--listen", http),
                *("--gpu-metrics", f"127.0.0.1:{self.gpu_metrics_port}"),
                *("--cpu-metrics", f"127.0.0.1:{self.cpu_metrics_port}"),
                *http_arguments,
            ]
            if certificate is not None and self._tls is not None:
                name = self._tls.name
                self._commands["http_gateway"] += [
                    "--target-tls-ca",
                    str(certificate),
                    "--target-tls-server-name",
                    name,
                ]
        self._environment = {**os.environ, ENDS_WITH: str(os.getpid()), **(environment or {})}
        self._log = log
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def _free_port(self) -> int:
        """A port that no other program is given until this pair is closed."""
        held = reserve()
        self._reserved.append(held)
        return int(held.getsockname()[1])

    def check_addresses(self) -> None:
        """Checks that this pair can have the addresses that it was given.

        Raises:
            PairError: Another process has one. The text says which, and who has it.
        """
        addresses = {
            "--listen": self.target,
            "--gpu-metrics-port": f"127.0.0.1:{self.gpu_metrics_port}",
            "--cpu-metrics-port": f"127.0.0.1:{self.cpu_metrics_port}",
        }
        if self.http is not None and ":" in self.http and not self.http.startswith("unix:"):
            addresses["--http-listen"] = self.http
        try:
            for flag, address in addresses.items():
                if not address.endswith(":0"):
                    check_free(flag, address)
        except PortTakenError as error:
            raise PairError(str(error)) from None
        if self.target.startswith("unix:") and self.is_serving(self.target):
            raise PairError(f"--listen: another server serves on {self.target}; stop it, or choose another address")

    def __enter__(self) -> Self:
        try:
            self.check_addresses()
            self.start("cpu_expert_service")
            self.start("gpu_service")
            self.wait_until_serving()
            if self.http is not None:
                self.start("http_gateway")
                self._wait_until_listening(self.http)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self, service: str) -> subprocess.Popen[bytes]:
        """Starts "gpu_service", "cpu_expert_service" or "http_gateway"."""
        process = self._spawn(service, self._commands[service])
        self.processes[service] = process
        return process

    def _spawn(self, service: str, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        command = command_of(service, *arguments)
        return subprocess.Popen(command, env=self._environment, stderr=self._log, stdin=subprocess.DEVNULL)

    def stop(self, service: str, number: int = signal.SIGTERM, timeout_seconds: float = 30) -> int:
        """Signals a service, waits for its end and returns its exit status.

        Raises:
            PairError: It did not end in time, and was killed.
        """
        process = self.processes[service]
        if process.poll() is None:
            process.send_signal(number)
        try:
            return process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise PairError(f"{service} did not stop within {timeout_seconds:g} s and was killed") from None

    def wait_until_serving(
        self, address: str | None = None, timeout_seconds: float | None = None, serving: bool = True
    ) -> None:
        """Waits until a service reports that it is serving, or with serving=False that it is not.

        Args:
            address: The service's address; None is the GPU service's, which is serving once both services are ready.
            timeout_seconds: How long to wait; None waits as long as both services run, since reading the experts of a
                large model can take minutes.
            serving: Whether to wait for serving or for not serving.

        Raises:
            PairError: A service ended, or the time ran out.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while self._serves(address) is not serving:
            self.check()
            if deadline is not None and time.monotonic() > deadline:
                state = "serving" if serving else "out of service"
                raise PairError(f"{address or self.target} was not {state} within {timeout_seconds:g} s")
            time.sleep(_POLL_SECONDS)

    def _serves(self, address: str | None) -> bool:
        """Whether a service reports SERVING, and if it is the GPU service, whether it is this pair's own."""
        if not self.is_serving(address or self.target, self._tls if address is None else None):
            return False
        if address is not None or "gpu_service" not in self.processes or self.target.startswith("unix:"):
            return True
        port = int(self.target.rpartition(":")[2])
        return listens(self.processes["gpu_service"].pid, port) is not False

    def _wait_until_listening(self, address: str) -> None:
        """Waits until connections to HOST:PORT are accepted.

        Raises:
            PairError: A process has ended.
        """
        host, _, port = address.rpartition(":")
        while True:
            self.check()  # first, since the gateway refuses an address that is no HOST:PORT
            with (
                contextlib.suppress(OSError, ValueError),
                socket.create_connection((host.strip("[]"), int(port)), timeout=1),
            ):
                return
            time.sleep(_POLL_SECONDS)

    @staticmethod
    def is_serving(address: str, tls: TlsTarget | None = None) -> bool:
        """Whether the service at an address reports SERVING."""
        options = [*rpc.channel_options(address, 2**20), ("grpc.use_local_subchannel_pool", 1)]
        channel = grpc.insecure_channel(rpc.target(address), options) if tls is None else tls.channel(address, options)
        with channel:
            return rpc.is_serving(channel, timeout_seconds=2)

    def check(self) -> None:
        """Checks that all processes run.

        Raises:
            PairError: A service has ended.
        """
        for service, process in self.processes.items():
            if process.poll() is not None:
                raise PairError(f"{service} ended with status {process.returncode}")

    def close(self) -> None:
        """Stops what runs, the gateway first and then the GPU service, and removes the directory of the socket."""
        for service in ("http_gateway", "gpu_service", "cpu_expert_service"):
            if service in self.processes:
                with contextlib.suppress(PairError):
                    self.stop(service)
        for held in self._reserved:
            held.close()
        shutil.rmtree(self._directory, ignore_errors=True)
