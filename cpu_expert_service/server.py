"""Starts the CPU expert service's parts in order, and stops them."""

import signal
from collections.abc import Callable

import structlog
import torch
from grpc_health.v1 import health_pb2

from cpu_expert_service import collectors, metrics
from cpu_expert_service.calls.front import Front
from cpu_expert_service.kernel import Kernel
from cpu_expert_service.kernel_choice import build_kernel
from cpu_expert_service.runner import Runner
from cpu_expert_service.service import ExpertServicer
from cpu_expert_service.settings import Settings
from fiddler import host_memory, process, tensors
from fiddler.access.certificates import Certificates
from fiddler.checkpoint import Checkpoint
from fiddler.convert.cache import served_model
from fiddler.convert.errors import StoppedError
from fiddler.errors import UserError
from fiddler.kernels.cpus import read_topology
from fiddler.metrics import serve, set_build_info
from fiddler.running.progress import Progress
from fiddler.running.stopping import Stop
from fiddler.running.upkeep import Upkeep
from fiddler.sizes import format_bytes

_log = structlog.get_logger("cpu_expert_service")


class _StoppedError(Exception):
    """A signal arrived before the service was ready."""


def run(settings: Settings) -> None:
    """Runs the service until SIGTERM or SIGINT.

    Raises:
        UserError: It cannot start with these settings or this checkpoint, or a file of it was changed meanwhile.
    """
    stop = Stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        checkpoint = Checkpoint.open(served_model(settings.model, settings.expert_format, stop.is_set))
    except StoppedError:
        return
    certificates = settings.metrics_certificates()
    changes: list[UserError] = []

    def give_up(error: UserError) -> None:
        changes.append(error)
        stop.set()

    looks = [checkpoint.states.check, process.MemoryKeeper().look, *([certificates.look] if certificates else [])]
    upkeep = Upkeep(looks, give_up)
    try:
        _serve(
            settings,
            checkpoint,
            stop,
            grace_seconds=lambda: 0 if changes else settings.grace_seconds,
            certificates=certificates,
        )
    finally:
        upkeep.stop()
    if changes:
        raise changes[0]
    _log.info("stopped")


def _serve(
    settings: Settings,
    checkpoint: Checkpoint,
    stop: Stop,
    *,
    grace_seconds: Callable[[], float],
    certificates: Certificates | None,
) -> None:
    """Loads the experts and serves until `stop` is set."""
    dtype = tensors.resolve_dtype(settings.dtype, checkpoint.expert_dtype)
    kernel = build_kernel(settings, read_topology())
    try:
        runner = _build_runner(checkpoint, kernel, stop)
    except _StoppedError:
        return
    servicer = ExpertServicer(checkpoint, runner, dtype=dtype, settings=settings)
    front = Front(settings, servicer)
    collectors.publish(runner, lambda: servicer.segments)
    _publish(checkpoint, runner, settings, certificates, front)
    _warn_of_short_memory(checkpoint)
    front.start()
    try:
        if settings.prefault or settings.weights == "ram":
            _load(checkpoint, runner, settings=settings, stop=stop)
            runner.calibrate(dtype)
        servicer.share_memory()
        front.set_health(health_pb2.HealthCheckResponse.SERVING)
        _log.info(
            "serving",
            address=settings.listen,
            kernel=kernel.name,
            threads=kernel.num_threads,
            dtype=tensors.name_of(dtype),
        )
        stop.wait()
    except _StoppedError:
        pass
    finally:
        front.stop(grace_seconds())


def _build_runner(checkpoint: Checkpoint, kernel: Kernel, stop: Stop) -> Runner:
    """Repacks experts if their format demands it, and shows the progress.

    Raises:
        _StoppedError: `stop` was set.
    """
    if not checkpoint.is_repacked:
        return Runner(checkpoint, kernel)
    model, num_bytes = str(checkpoint.directory), checkpoint.repacked_bytes
    _log.info("repacking experts", model=model, format=checkpoint.weight_format, own_memory=format_bytes(num_bytes))
    with Progress("repacking experts", num_bytes) as shown:

        def progress(done_bytes: int, total_bytes: int) -> None:
            shown(done_bytes, total_bytes)
            if stop.is_set():
                raise _StoppedError

        return Runner(checkpoint, kernel, progress)


def _load(checkpoint: Checkpoint, runner: Runner, *, settings: Settings, stop: Stop) -> None:
    """Reads all experts into memory, and shows the progress.

    Raises:
        NotEnoughMemoryError: --weights ram, and the copies do not fit.
        UnsupportedDtypeError: A scale of an expert is infinite or not a number.
        _StoppedError: `stop` was set.
    """
    _log.info(
        "reading experts",
        model=str(checkpoint.directory),
        size=format_bytes(checkpoint.expert_bytes),
        to={"mmap": "the page cache", "ram": "memory of this service"}[settings.weights],
    )
    with Progress("reading experts", checkpoint.expert_bytes) as shown:

        def progress(done_bytes: int, total_bytes: int) -> None:
            shown(done_bytes, total_bytes)
            if stop.is_set():
                raise _StoppedError

        if settings.weights == "ram":
            runner.copy_to_ram(progress)
        elif not checkpoint.is_repacked:  # those are in memory of their own already
            checkpoint.prefault(progress)
    checkpoint.check_scales()


def _warn_of_short_memory(checkpoint: Checkpoint) -> None:
    """Pages of the experts count as this process's in a container, and are dropped at its limit."""
    memory = host_memory.measure()
    if checkpoint.expert_bytes > memory.total_bytes:
        _log.warning(
            "the experts do not fit into the memory that this process may use, so that tokens wait for the disk;"
            " raise its limit (CPU_EXPERT_MEMORY in compose.yaml), or serve fewer bits (--expert-format int4)",
            experts=format_bytes(checkpoint.expert_bytes),
            memory=format_bytes(memory.total_bytes),
        )


def _publish(
    checkpoint: Checkpoint, runner: Runner, settings: Settings, certificates: Certificates | None, front: Front
) -> None:
    set_build_info(
        "cpu_expert_service",
        torch_version=torch.__version__,
        kernel=runner.kernel.name,
        model_name=checkpoint.name,
        model_type=checkpoint.model_type,
        weight_format=checkpoint.weight_format,
    )
    metrics.WEIGHT_BYTES.set(checkpoint.expert_bytes)
    metrics.THREADS.set(runner.kernel.num_threads)
    serve(
        settings.metrics_host,
        settings.metrics_port,
        certificates=certificates,
        is_serving=lambda: front.is_serving,
        before=front.count,
    )
