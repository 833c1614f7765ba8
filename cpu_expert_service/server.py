"""Starts the CPU expert service's parts in order, and stops them."""

import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import structlog
import torch
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from tqdm import tqdm

from cpu_expert_service import collectors, metrics
from cpu_expert_service.cpus import read_topology
from cpu_expert_service.kernel import Kernel
from cpu_expert_service.kernel_choice import build_kernel
from cpu_expert_service.runner import Runner
from cpu_expert_service.service import ExpertServicer
from cpu_expert_service.settings import Settings
from fiddler import listen, rpc, tensors
from fiddler.checkpoint import Checkpoint
from fiddler.metrics import serve, set_build_info
from fiddler.v1 import experts_pb2, experts_pb2_grpc

_SERVICE = experts_pb2.DESCRIPTOR.services_by_name["ExpertService"].full_name
_SPARE_THREADS = 4  # for handshakes, health checks and reflection while all streams are open
_log = structlog.get_logger("cpu_expert_service")


class _StoppedError(Exception):
    """A signal arrived before the service was ready."""


def run(settings: Settings) -> None:
    """Runs the service until SIGTERM or SIGINT.

    Raises:
        UserError: It cannot start with these settings or this checkpoint.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    checkpoint = Checkpoint.open(settings.model)
    dtype = tensors.resolve_dtype(settings.dtype, checkpoint.expert_dtype)
    kernel = build_kernel(settings, read_topology())
    try:
        runner = _build_runner(checkpoint, kernel, stop)
    except _StoppedError:
        _log.info("stopped")
        return
    servicer = ExpertServicer(checkpoint, runner, dtype=dtype, settings=settings)
    _publish(checkpoint, runner, settings)
    server, health_servicer = _build_server(settings, servicer)
    listener = listen.bind(server, settings.listen)
    server.start()
    try:
        if settings.prefault or settings.weights == "ram":
            _load(checkpoint, runner, settings=settings, stop=stop)
            runner.calibrate(dtype)
        _set_health(health_servicer, health_pb2.HealthCheckResponse.SERVING)
        _log.info("serving", address=settings.listen, kernel=kernel.name, threads=kernel.num_threads, dtype=str(dtype))
        stop.wait()
    except _StoppedError:
        pass
    finally:
        health_servicer.enter_graceful_shutdown()
        listener.remove()
        servicer.end_idle_streams()
        server.stop(settings.grace_seconds).wait()
    _log.info("stopped")


def _build_runner(checkpoint: Checkpoint, kernel: Kernel, stop: threading.Event) -> Runner:
    """Repacks experts if their format demands it, with a progress bar on a terminal.

    Raises:
        _StoppedError: `stop` was set.
    """
    if not checkpoint.is_repacked:
        return Runner(checkpoint, kernel)
    model, num_bytes = str(checkpoint.directory), checkpoint.repacked_bytes
    _log.info("repacking experts", model=model, format=checkpoint.weight_format, own_bytes=num_bytes)
    with tqdm(total=num_bytes, desc="repacked", unit="B", unit_scale=True, disable=None) as bar:

        def progress(done_bytes: int, total_bytes: int) -> None:
            bar.update(done_bytes - bar.n)
            if stop.is_set():
                raise _StoppedError

        return Runner(checkpoint, kernel, progress)


def _build_server(settings: Settings, servicer: ExpertServicer) -> tuple[grpc.Server, health.HealthServicer]:
    server = grpc.server(
        ThreadPoolExecutor(settings.max_streams + _SPARE_THREADS, thread_name_prefix="grpc"),
        options=rpc.server_options(settings.max_message_bytes),
    )
    experts_pb2_grpc.add_ExpertServiceServicer_to_server(servicer, server)
    health_servicer = health.HealthServicer(experimental_non_blocking=True)
    _set_health(health_servicer, health_pb2.HealthCheckResponse.NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection([_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    return server, health_servicer


def _set_health(servicer: health.HealthServicer, status: int) -> None:
    for name in ("", _SERVICE):
        servicer.set(name, status)


def _load(checkpoint: Checkpoint, runner: Runner, *, settings: Settings, stop: threading.Event) -> None:
    """Reads all experts into memory, with a progress bar on a terminal.

    Raises:
        NotEnoughMemoryError: --weights ram, and the copies do not fit.
        UnsupportedDtypeError: A scale of an expert is infinite or not a number.
        _StoppedError: `stop` was set.
    """
    _log.info("reading experts", model=str(checkpoint.directory), bytes=checkpoint.expert_bytes, to=settings.weights)
    with tqdm(total=checkpoint.expert_bytes, desc="experts", unit="B", unit_scale=True, disable=None) as bar:

        def progress(done_bytes: int, total_bytes: int) -> None:
            bar.total = total_bytes
            bar.update(done_bytes - bar.n)
            if stop.is_set():
                raise _StoppedError

        if settings.weights == "ram":
            runner.copy_to_ram(progress)
        elif not checkpoint.is_repacked:  # those are in memory of their own already
            checkpoint.prefault(progress)
    checkpoint.check_scales()


def _publish(checkpoint: Checkpoint, runner: Runner, settings: Settings) -> None:
    set_build_info(
        "cpu_expert_service",
        torch_version=torch.__version__,
        kernel=runner.kernel.name,
        model_type=checkpoint.model_type,
        weight_format=checkpoint.weight_format,
    )
    metrics.WEIGHT_BYTES.set(checkpoint.expert_bytes)
    metrics.THREADS.set(runner.kernel.num_threads)
    collectors.publish(runner)
    serve(settings.metrics_host, settings.metrics_port)
