"""The engine: one thread that runs one step after another, and how other threads speak to it."""

import queue
import threading
from collections.abc import Callable

import structlog
import torch

from gpu_service.engine.request import Request
from gpu_service.engine.request_ids import RequestIds
from gpu_service.engine.scheduler import Scheduler
from gpu_service.engine.stepper import Stepper
from gpu_service.errors import EngineStoppedError
from gpu_service.model_runner.model import Model
from gpu_service.sampling.outputs import FinishReason

_log = structlog.get_logger(__name__)


class Engine:
    """Runs requests on a model. `submit`, `cancel` and `abort` are for any thread; all else is the engine's own."""

    def __init__(self, model: Model, scheduler: Scheduler, on_failure: Callable[[Exception], None]) -> None:
        """Prepares the engine; `start` starts it.

        Args:
            model: Computes logits.
            scheduler: Says what is computed next.
            on_failure: Called, from the engine's thread, with what made a whole step fail; with an EngineStoppedError
                where the engine cannot go on.
        """
        self._scheduler = scheduler
        self._on_failure = on_failure
        self._ids = RequestIds()
        self._stepper = Stepper(model, scheduler, self._ids, on_failure)
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._inbox_lock = threading.Lock()
        self._is_closed = False
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._stopped = threading.Event()

    @property
    def num_running(self) -> int:
        """Requests that are being computed."""
        return self._scheduler.num_running

    @property
    def num_waiting(self) -> int:
        """Requests that wait until what they need is free."""
        return self._scheduler.num_waiting

    @property
    def used_slots(self) -> int:
        """Rows that the requests being computed need."""
        return self._scheduler.used_slots

    @property
    def max_slots(self) -> int:
        """Rows that may be in use at one time."""
        return self._scheduler.budget.max_rows

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values that may be held."""
        return self._scheduler.budget.num_bytes

    @property
    def used_kv_bytes(self) -> int:
        """Bytes of keys and values that the requests being computed may come to hold."""
        return self._scheduler.used_kv_bytes

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Fails what is under way and waits for the thread to end."""
        self._stopped.set()
        self._inbox.put(None)
        self._thread.join()

    def check(self, request: Request) -> None:
        """Makes sure that a request can be run where nothing else is.

        Raises:
            NeverFitsError: It is too large for the memory of keys and values, or for the slots.
        """
        self._scheduler.check(request)

    def submit(self, request: Request) -> None:
        """Queues a request; its events come through request.emit.

        A queue that is full is told as a Failed event with a QueueFullError, an engine that has stopped as one with an
        EngineStoppedError.

        Raises:
            NeverFitsError: See `check`.
            DuplicateIdError: A request with its request_id is under way.
        """
        self.check(request)
        self._ids.add(request)
        if not self._post(lambda: self._stepper.add(request)):
            self._stepper.add(request)  # which fails it, now that the engine has stopped

    def cancel(self, request: Request, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """Ends a request before its next step, if it has not ended. Its slots are free from then on."""
        self._post(lambda: self._stepper.cancel(request, reason))

    def abort(self, request_id: str) -> bool:
        """Cancels the request of that id. Returns whether there was one that had not ended; it waits for nothing."""
        request = self._ids.abort(request_id)
        if request is None:
            return False
        self.cancel(request)
        return True

    def _loop(self) -> None:
        reason = EngineStoppedError("the service is stopping")
        try:
            with torch.inference_mode():
                while not self._stopped.is_set():
                    self._read_inbox(block=self._scheduler.num_running + self._scheduler.num_waiting == 0)
                    self._stepper.step()
        except Exception as error:
            _log.exception("the engine failed")
            reason = EngineStoppedError(f"the engine failed: {error}")
            self._on_failure(reason)
        self._stepper.fail_all(reason)
        with self._inbox_lock:
            self._is_closed = True
        self._read_inbox(block=False)  # requests that came meanwhile fail, too

    def _post(self, act: Callable[[], None]) -> bool:
        """Leaves something for the engine's thread to do. Returns False where it does nothing any more."""
        with self._inbox_lock:
            if not self._is_closed:
                self._inbox.put(act)
            return not self._is_closed

    def _read_inbox(self, block: bool) -> None:
        while block or not self._inbox.empty():
            block = False
            if act := self._inbox.get():
                act()
