"""The step loop: one thread that computes a batch after another and hands every request its tokens."""

import queue
import threading
import time
from collections.abc import Callable

import structlog
import torch

from gpu_service import metrics
from gpu_service.expert_client import ExpertServiceError
from gpu_service.model import Model
from gpu_service.request import Event, Failed, FinishReason, Request, Token
from gpu_service.sampling import Sampler, sample
from gpu_service.scheduler import Batch, QueueFullError, Scheduler

_log = structlog.get_logger(__name__)


class EngineStoppedError(Exception):
    """The engine computes no more."""


class Engine:
    """Runs requests on a model. `submit` and `cancel` may be called from any thread; all else is the engine's own."""

    def __init__(self, model: Model, scheduler: Scheduler, on_failure: Callable[[Exception], None]) -> None:
        """Prepares the engine; `start` starts it.

        Args:
            model: Computes logits.
            scheduler: Says what is computed next.
            on_failure: Called, from the engine's thread, with what made a whole step fail; with an EngineStoppedError
                where the engine cannot go on.
        """
        self._model = model
        self._scheduler = scheduler
        self._on_failure = on_failure
        self._samplers: dict[Request, Sampler] = {}
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._stopped = threading.Event()

    @property
    def num_running(self) -> int:
        """Requests that have a slot."""
        return self._scheduler.num_running

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a slot."""
        return self._scheduler.num_waiting

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Fails what is under way and waits for the thread to end."""
        self._stopped.set()
        self._inbox.put(None)
        self._thread.join()

    def submit(self, request: Request) -> None:
        """Queues a request; its events come through request.emit.

        A queue that is full is told as a Failed event with a QueueFullError.
        """
        self._inbox.put(lambda: self._add(request))

    def cancel(self, request: Request, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """Ends a request before its next step, if it has not ended. Its slot is free from then on."""
        self._inbox.put(lambda: self._finish(request, request.finished(reason)))

    def step(self) -> bool:
        """Computes one batch. Returns False where there was nothing to compute."""
        batch = self._scheduler.next_batch()
        if batch is None:
            return False
        try:
            logits = self._forward(batch)
            tokens = [] if logits is None else self._choose(batch, logits)
        except Exception as error:
            self._fail(batch, error)
            return True
        self._scheduler.commit(batch, tokens)
        self._deliver(batch, tokens)
        return True

    def _forward(self, batch: Batch) -> torch.Tensor | None:
        for request in batch.requests:
            request.started_at = request.started_at or time.monotonic()
        return self._model.forward(
            torch.tensor(batch.token_ids), torch.tensor(batch.positions), batch.first_row, batch.samples
        )

    def _choose(self, batch: Batch, logits: torch.Tensor) -> list[int]:
        """[requests, vocab] -> the next token of each request."""
        samplers = [self._samplers[request] for request in batch.requests]
        return sample(logits, samplers, [(request.prompt, request.output) for request in batch.requests])

    def _deliver(self, batch: Batch, tokens: list[int]) -> None:
        now = time.monotonic()
        for request, token in zip(batch.requests, tokens, strict=False):
            metrics.observe_token(request, now)
            request.first_token_at = request.first_token_at or now
            request.last_token_at = now
            request.emit(Token(token))
            if reason := request.finish_reason():
                self._finish(request, request.finished(reason))

    def _add(self, request: Request) -> None:
        try:
            sampler = Sampler(request.sampling, self._model.device)
            self._scheduler.add(request)
        except QueueFullError as error:
            request.emit(Failed(error))
        except ValueError as error:
            _log.error("request refused", error=str(error))
            request.emit(Failed(error))
        else:
            self._samplers[request] = sampler

    def _finish(self, request: Request, event: Event) -> None:
        if self._samplers.pop(request, None) is None:
            return  # it ended before
        for move in self._scheduler.remove(request):
            self._model.cache.move(move.source, move.target, move.length)
        request.emit(event)

    def _fail(self, batch: Batch, error: Exception) -> None:
        expected = isinstance(error, ExpertServiceError)  # the message says it all
        _log.error("step failed", requests=len(batch.requests), error=str(error), exc_info=None if expected else error)
        self._on_failure(error)
        for request in batch.requests:
            self._finish(request, Failed(error))
        if isinstance(error, torch.AcceleratorError):
            raise error  # after a fault on the device, all that it computes fails

    def _loop(self) -> None:
        reason = EngineStoppedError("the service is stopping")
        try:
            with torch.inference_mode():
                while not self._stopped.is_set():
                    self._read_inbox(block=self._scheduler.num_running + self._scheduler.num_waiting == 0)
                    self.step()
        except Exception as error:
            _log.exception("the engine failed")
            reason = EngineStoppedError(f"the engine failed: {error}")
            self._on_failure(reason)
        for request in list(self._samplers):
            self._samplers.pop(request)
            request.emit(Failed(reason))

    def _read_inbox(self, block: bool) -> None:
        while block or not self._inbox.empty():
            block = False
            if act := self._inbox.get():
                act()
