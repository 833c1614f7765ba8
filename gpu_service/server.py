"""Starts the GPU service's parts in order, reports its health, and stops it."""

import asyncio
import contextlib
import signal
import time
from functools import partial
from typing import Any

import structlog
import torch
from grpc_health.v1 import health, health_pb2

from fiddler import process, tensors
from fiddler.checkpoint import Checkpoint
from fiddler.errors import UserError
from fiddler.metrics import serve, set_build_info
from fiddler.running.upkeep import Upkeep
from fiddler.v1 import experts_pb2
from gpu_service import collectors
from gpu_service.api.auth import Access
from gpu_service.api.expert_health import ExpertHealth
from gpu_service.api.front import NAMES, Front
from gpu_service.api.generations import Generations
from gpu_service.api.service import GenerationServicer
from gpu_service.api.serving import ServedModel
from gpu_service.cpu_experts.client import ExpertClient
from gpu_service.engine.engine import Engine
from gpu_service.engine.scheduler import Scheduler
from gpu_service.errors import EngineStoppedError, ExpertServiceError
from gpu_service.expert_collector import RoutingCollector
from gpu_service.model_runner.dense.formats import DensePlan
from gpu_service.model_runner.model import Model
from gpu_service.model_runner.threads import set_threads
from gpu_service.moe.orchestration import Orchestration
from gpu_service.placement.popularity import Popularity
from gpu_service.settings import Settings
from gpu_service.startup.await_experts import await_experts
from gpu_service.startup.background import in_thread
from gpu_service.startup.chunks import chunks_of
from gpu_service.startup.device import choose_device
from gpu_service.startup.device_memory import out_of_memory_reported
from gpu_service.startup.ending import exit_after, save_popularity
from gpu_service.startup.experts import make_orchestration
from gpu_service.startup.model import check_graphs, load_model, warm_up
from gpu_service.startup.request_bytes import max_request_bytes
from gpu_service.text.tokenizer import Tokenizer
from gpu_service.tracing import Tracing, provider_for

_LAST_STEP_SECONDS = 1.0
_LAST_WORDS_SECONDS = 1.0
_STOP_SECONDS = _LAST_STEP_SECONDS + _LAST_WORDS_SECONDS + 1.0
"""What stopping may take after the grace period. Then the process ends, whatever hangs."""
_THREADS_SECONDS = 1.0
_log = structlog.get_logger("gpu_service")


class Server:
    """One GPU service. `run` returns after a signal has stopped it."""

    def __init__(self, settings: Settings, access: Access) -> None:
        """Opens the checkpoint, without listening yet. Made in the event loop that runs it.

        Raises:
            UserError: The checkpoint or the popularity file is wrong, or the device is not there.
        """
        self._settings = settings
        self._access = access
        self._metrics_certificates = settings.metrics_certificates()
        self._tracer_provider = provider_for(settings.traces_endpoint) if settings.traces_endpoint else None
        self._checkpoint = Checkpoint.open(settings.model)
        self._max_request_bytes = max_request_bytes(settings, self._checkpoint.config)
        self._popularity = Popularity.load(settings.popularity, self._checkpoint) if settings.popularity else None
        self._dtype = tensors.resolve_dtype(settings.dtype, self._checkpoint.expert_dtype)
        self._device = choose_device(settings.device)
        set_threads(settings.threads)
        self._dense_plan = DensePlan.resolve(settings.dense_format, self._device)
        self._health = health.aio.HealthServicer()
        self._expert_health = ExpertHealth(self._health)
        self._experts = ExpertClient(
            settings.experts,
            self._dtype,
            timeout_seconds=settings.expert_timeout_seconds,
            weight_format=self._checkpoint.weight_format,
            max_message_bytes=settings.max_message_bytes,
            on_change=self._expert_health.changed,
        )
        self._generations = Generations()
        self._servicer = GenerationServicer(self._generations)
        self._front = Front(
            settings,
            access,
            servicer=self._servicer,
            health_servicer=self._health,
            max_request_bytes=self._max_request_bytes,
        )
        self._loop = asyncio.get_running_loop()
        self._fatal: asyncio.Future[EngineStoppedError] = self._loop.create_future()
        self._changed: asyncio.Future[UserError] = self._loop.create_future()

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT.

        Raises:
            UserError: A flag, a file or the model is wrong, or a file of weights was changed.
            HandshakeError: The CPU expert service serves another checkpoint or dtype.
            EngineStoppedError: The engine cannot go on.
        """
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, stop.set)
        if self._settings.tokens_file:
            self._loop.add_signal_handler(signal.SIGHUP, self._access.tokens.reload)
        await self._listen()
        work = asyncio.create_task(self._start_and_watch())
        stopping = asyncio.create_task(stop.wait())
        certificates = filter(None, [self._access.certificates, self._metrics_certificates])
        looks = [self._checkpoint.states.check, process.MemoryKeeper().look, *(each.look for each in certificates)]
        upkeep = Upkeep(looks, self._files_changed)
        try:
            ends: set[asyncio.Future[Any]] = {work, stopping, self._changed}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if self._changed.done():
                raise self._changed.result()
            if work.done():
                work.result()
        finally:
            upkeep.stop()
            status = 1 if work.done() or self._changed.done() else 0
            work.cancel()
            stopping.cancel()
            timer = exit_after(self._settings.grace_seconds + _STOP_SECONDS, status)
            await self._stop()
            timer.cancel()
            # threads that work on a text for callers who are gone may go on for long, and nothing else stops them
            exit_after(_THREADS_SECONDS, status)
        _log.info("service stopped")

    async def _listen(self) -> None:
        settings = self._settings
        await self._set_serving(False)
        await self._expert_health.report(self._experts.error)
        set_build_info(
            "gpu_service",
            torch_version=torch.__version__,
            model_name=self._checkpoint.name,
            model_type=self._checkpoint.model_type,
            device=str(self._device),
            weight_format=self._checkpoint.weight_format,
            dense_format=self._dense_plan.format_of(self._checkpoint, self._dtype),
        )
        host, port, certificates = settings.metrics_host, settings.metrics_port, self._metrics_certificates
        serve(host, port, certificates=certificates, is_serving=lambda: not self._generations.unavailable)
        await self._front.start()

    async def _start_and_watch(self) -> None:
        """Loads the model while it waits for the CPU expert service; then serves until the engine fails."""
        (model, tokenizer), experts = await asyncio.gather(in_thread(self._load), self._await_experts())
        settings = self._settings
        budget = await in_thread(partial(warm_up, settings, model))
        chunks = chunks_of(experts, settings, model)
        model.dispatcher.max_rows = max_rows = max(chunks.alone, settings.max_slots)
        model.dispatcher.use(await self._make_orchestration(model, experts, max_rows))
        await in_thread(partial(check_graphs, model))
        model.dispatcher.clear_counts()  # those of the measurements
        scheduler = Scheduler(
            model.cache,
            budget,
            max_waiting=settings.max_waiting,
            chunks=chunks,
            rope_angles=model.rope_angles,
            packs_spans=model.packs_spans,
        )
        tracing = self._trace_to(model) if settings.traces_endpoint else None
        engine = Engine(model, scheduler, self._step_failed, tracing.step if tracing else None)
        collectors.publish(
            collectors.EngineCollector(engine, settings.max_waiting, self._expert_health.degraded_seconds),
            RoutingCollector(model.dispatcher, self._checkpoint, settings.metrics_by_expert),
            collectors.CostCollector(model.dispatcher, self._checkpoint),
        )
        engine.start()
        self._generations.served = ServedModel(
            checkpoint=self._checkpoint,
            model=model,
            tokenizer=tokenizer,
            engine=engine,
            experts=experts,
            limits=settings.limits,
            max_slots=settings.max_slots,
            max_waiting=settings.max_waiting,
            max_message_bytes=self._max_request_bytes,
            ready_at=time.monotonic(),
            is_degraded=lambda: not self._experts.available,
        )
        await self._set_serving(True)
        _log.info("serving", address=settings.listen, device=str(self._device), dtype=tensors.name_of(self._dtype))
        raise await self._fatal

    def _trace_to(self, model: Model) -> Tracing:
        tracing = Tracing(self._tracer_provider, self._checkpoint.name, model.dispatcher.costs.take_step)
        self._generations.tracing = tracing
        return tracing

    def _load(self) -> tuple[Model, Tokenizer]:
        return load_model(
            self._settings, self._checkpoint, device=self._device, dtype=self._dtype, experts=self._experts
        )

    async def _make_orchestration(
        self, model: Model, experts: experts_pb2.DescribeResponse, max_rows: int
    ) -> Orchestration:
        """Makes the orchestration; starts again if the CPU expert service is lost meanwhile."""
        while True:
            make = partial(
                make_orchestration,
                self._settings,
                self._checkpoint,
                model,
                description=experts,
                client=self._experts,
                popularity=self._popularity,
                max_rows=max_rows,
            )
            try:
                with out_of_memory_reported(model.device, "a step and the experts (--gpu-expert-memory)"):
                    return await in_thread(make)
            except ExpertServiceError as error:
                _log.warning("measuring costs failed", reason=str(error))
                experts = await self._await_experts()

    async def _await_experts(self) -> experts_pb2.DescribeResponse:
        """Waits until the CPU expert service is ready. The log and callers learn that it waits."""
        self._generations.unavailable = f"waiting for the CPU expert service at {self._settings.experts}"
        return await await_experts(self._experts, self._settings.experts, self._checkpoint.fingerprint)

    def _step_failed(self, error: Exception) -> None:
        """The engine's thread calls this."""
        if isinstance(error, EngineStoppedError):
            self._loop.call_soon_threadsafe(self._engine_stopped, error)

    def _files_changed(self, error: UserError) -> None:
        """The thread of the upkeep calls this."""

        def end() -> None:
            if not self._changed.done():
                self._changed.set_result(error)

        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(end)

    def _engine_stopped(self, error: EngineStoppedError) -> None:
        if not self._fatal.done():
            self._fatal.set_result(error)

    async def _set_serving(self, serving: bool) -> None:
        self._generations.unavailable = "" if serving else "the service is starting"
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in NAMES:
            await self._health.set(name, status)

    async def _stop(self) -> None:
        """Lets generations continue for the grace period; those that are left then fail, and their callers learn why.

        If the weights were changed, none continues, since its tokens might be wrong.

        Meanwhile the server still listens: it reports that it is not serving, and refuses new calls, so that callers
        that have not noticed get an answer rather than a broken connection.
        """
        has_changed = self._changed.done()
        why = "the checkpoint was changed while it was served" if has_changed else "the service is stopping"
        self._generations.unavailable = why
        await self._health.enter_graceful_shutdown()
        self._front.remove()
        with contextlib.suppress(TimeoutError):
            grace_seconds = 0 if has_changed else self._settings.grace_seconds
            await asyncio.wait_for(self._servicer.calls.wait_until_none(), grace_seconds)
        if served := self._generations.served:
            stopping = asyncio.create_task(in_thread(partial(served.engine.stop, why)))
            await asyncio.wait({stopping}, timeout=_LAST_STEP_SECONDS)
            self._experts.abort()  # the engine may be waiting for an answer that never comes
            await stopping
            save_popularity(self._settings.save_popularity, served.model, self._checkpoint)
            served.model.dispatcher.close()
        await self._front.stop(_LAST_WORDS_SECONDS)
        if self._generations.tracing:
            await in_thread(self._generations.tracing.close)
        self._experts.close()


async def run(settings: Settings, access: Access) -> None:
    """Runs the service until a signal stops it.

    Raises:
        UserError, HandshakeError, EngineStoppedError: See Server.
    """
    await Server(settings, access).run()
