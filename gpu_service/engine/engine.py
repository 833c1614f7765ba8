"""The engine: one thread that runs step after step, and the calls by which other threads reach it."""

import queue
import threading
from collections.abc import Callable

import structlog
import torch

from gpu_service.engine.batches.batch import OnStep
from gpu_service.engine.generation import Answer
from gpu_service.engine.request import Request
from gpu_service.engine.request_ids import RequestIds
from gpu_service.engine.scheduler import Scheduler
from gpu_service.engine.stepper import Stepper
from gpu_service.errors import EngineStoppedError, panics_as_errors
from gpu_service.model_runner.model import Model
from gpu_service.sampling.outputs import FinishReason

_log = structlog.get_logger(__name__)


class Engine:
    """Runs requests on a model. Any thread may call `submit`, `cancel`, `abort` and read the properties."""

    def __init__(
        self,
        model: Model,
        scheduler: Scheduler,
        on_failure: Callable[[Exception], None],
        on_step: OnStep | None = None,
    ) -> None:
        """Creates the engine; `start` starts it.

        Args:
            model: Computes logits.
            scheduler: Decides what is computed next.
            on_failure: Called from the engine's thread with the exception that failed a whole step, and with an
                EngineStoppedError if the engine cannot continue.
            on_step: Called from the engine's thread after each forward; see OnStep.
        """
        self._scheduler = scheduler
        self._on_failure = on_failure
        self._ids = RequestIds()
        self._stepper = Stepper(model, scheduler, ids=self._ids, on_failure=on_failure)
        if on_step:
            self._stepper.on_step = on_step
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._inbox_lock = threading.Lock()
        self._is_closed = False
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._stopped = threading.Event()
        self._why = ""

    @property
    def num_running(self) -> int:
        """Requests that are being computed."""
        return self._scheduler.num_running

    @property
    def num_waiting(self) -> int:
        """Requests that wait until there is room for them."""
        return self._scheduler.num_waiting

    @property
    def used_rows(self) -> int:
        """KV rows that the requests being computed need."""
        return self._scheduler.used_rows

    @property
    def max_rows(self) -> int:
        """KV rows that may be in use at one time."""
        return self._scheduler.budget.max_rows

    def longest(self, num_rows: int) -> int:
        """Tokens that each of so many KV rows may hold when nothing else is stored."""
        return self._scheduler.budget.longest(num_rows)

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values that may be stored."""
        return self._scheduler.budget.num_bytes

    @property
    def used_kv_bytes(self) -> int:
        """Bytes of keys and values that the requests being computed may come to hold."""
        return self._scheduler.used_kv_bytes

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self, why: str = "the service is stopping") -> None:
        """Fails all requests under way, whose callers learn why, and waits for the thread to end."""
        self._why = why
        self._stopped.set()
        self._inbox.put(None)
        self._thread.join()

    def check(self, request: Request) -> None:
        """Checks that a request can be computed when nothing else is.

        Raises:
            NeverFitsError: It needs more memory of keys and values, or more KV rows, than there are.
        """
        self._scheduler.check(request)

    def check_time(self, priority: int, deadline: float | None) -> None:
        """Refuses a request that could not be computed by its deadline, as far as that is known before it is parsed.

        Args:
            priority: The request's.
            deadline: When its caller leaves, on the clock of time.monotonic(); None: never.

        Raises:
            OverloadedError: It could not be computed in time.
        """
        self._scheduler.waiting.check_time(priority, deadline)

    def submit(self, request: Request) -> Answer:
        """Queues a request; its events come through request.emit.

        If the queue is full, the event is a Failed with a QueueFullError; if the engine has stopped, one with an
        EngineStoppedError.

        Returns:
            How far the request is computed. The engine's thread changes it.

        Raises:
            NeverFitsError: See `check`.
            DuplicateIdError: A request with the same request_id is under way.
        """
        self.check(request)
        self._ids.add(request)
        answer = Answer(request)
        if not self._post(lambda: self._stepper.add(answer)):
            self._stepper.add(answer)  # fails it, since the engine has stopped
        return answer

    def cancel(self, request: Request, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """Ends a request before its next step, if it has not ended, and frees its KV rows."""
        self._post(lambda: self._stepper.cancel(request, reason))

    def abort(self, request_id: str) -> bool:
        """Cancels the request of that id without waiting. Returns whether there was one that had not ended."""
        request = self._ids.abort(request_id)
        if request is None:
            return False
        self.cancel(request)
        return True

    def _loop(self) -> None:
        reason: EngineStoppedError | None = None
        try:
            with torch.inference_mode(), panics_as_errors():
                while not self._stopped.is_set():
                    self._read_inbox(block=self._scheduler.num_running + self._scheduler.num_waiting == 0)
                    self._stepper.step()
        except Exception as error:
            _log.exception("engine failed")
            reason = EngineStoppedError(f"the engine failed: {error}")
            self._on_failure(reason)
        self._stepper.fail_all(reason or EngineStoppedError(self._why))
        with self._inbox_lock:
            self._is_closed = True
        self._read_inbox(block=False)  # fails the requests that came meanwhile

    def _post(self, act: Callable[[], None]) -> bool:
        """Hands the engine's thread something to do. Returns False if the thread has ended."""
        with self._inbox_lock:
            if not self._is_closed:
                self._inbox.put(act)
            return not self._is_closed

    def _read_inbox(self, block: bool) -> None:
        while block or not self._inbox.empty():
            block = False
            if act := self._inbox.get():
                act()
