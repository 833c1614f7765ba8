"""The requests that wait: in which order they begin, and which of them cannot begin in their time.

Requests begin by priority and, within one, by arrival. Every eighth to begin is the one that arrived first, whatever
its priority, so that a steady flow at a higher priority does not starve the others. Imports no torch.
"""

import bisect
import time
from collections.abc import Callable, Sequence

from gpu_service.engine.generation import Answer
from gpu_service.engine.service_times import ServiceTimes
from gpu_service.errors import OverloadedError, QueueFullError

_BEGIN_IN_TURN = 8
_MARGIN = 1.25
"""How much longer a wait may take than is expected: the caller that is kept waiting is one that is served in time."""
_LEAST_RETRY_SECONDS, _MOST_RETRY_SECONDS = 1.0, 60.0


class WaitingQueue:
    """Requests that wait. Only the engine's thread changes it; any thread may ask for its length and `check_time`."""

    def __init__(self, times: ServiceTimes, max_waiting: int, used_rows: Callable[[], int]) -> None:
        """An empty queue.

        Args:
            times: How long requests take to compute.
            max_waiting: The most requests that wait.
            used_rows: The KV rows in which requests are computed now.
        """
        self._times = times
        self._max_waiting = max_waiting
        self._used_rows = used_rows
        self._answers: list[Answer] = []
        self._dropped: list[Answer] = []
        self._num_passed = 0

    def __len__(self) -> int:
        return len(self._answers)

    def __contains__(self, answer: object) -> bool:
        return answer in self._answers

    def add(self, answer: Answer) -> None:
        """Adds a request."""
        bisect.insort(self._answers, answer, key=order)

    def remove(self, answer: Answer) -> None:
        """Removes a request that does not wait any more."""
        self._answers.remove(answer)

    def first(self) -> Answer | None:
        """The request to begin next; None if none waits. Requests whose time is up, or nearly, are dropped."""
        while self._answers:
            answer = self._oldest() if self._num_passed >= _BEGIN_IN_TURN - 1 else self._answers[0]
            if not self._is_late(answer):
                return answer
            self._answers.remove(answer)
            self._dropped.append(answer)
        return None

    def begin(self, answer: Answer) -> None:
        """Removes a request that begins."""
        self._num_passed = 0 if answer is self._oldest() else self._num_passed + 1
        self._answers.remove(answer)

    def take_dropped(self) -> list[Answer]:
        """The requests that `first` dropped since this was last called."""
        dropped, self._dropped = self._dropped, []
        return dropped

    def check(self, answer: Answer) -> None:
        """Removes a request that was just added if it should not wait.

        Raises:
            QueueFullError: Too many requests wait.
            OverloadedError: It could not be computed by its deadline.
        """
        request = answer.request
        ahead = self._answers[: self._answers.index(answer)]
        try:
            if len(self._answers) > self._max_waiting:
                raise QueueFullError(f"{len(self._answers) - 1} requests wait already")
            self._check(ahead, request.least_tokens, request.deadline)
        except QueueFullError:
            self._answers.remove(answer)
            raise

    def check_time(self, priority: int, deadline: float | None) -> None:
        """Refuses a request that is not here yet if it could not even begin by its deadline. For any thread.

        Args:
            priority: The request's.
            deadline: When its caller leaves, on the clock of time.monotonic(); None: never.

        Raises:
            OverloadedError: It could not.
        """
        answers = tuple(self._answers)
        if answers:
            self._check([answer for answer in answers if answer.request.priority >= priority], 1, deadline)

    def _check(self, ahead: Sequence[Answer], max_tokens: int, deadline: float | None) -> None:
        if deadline is None:
            return
        num_ahead = sum(answer.request.num_rows for answer in ahead)
        wait_seconds = self._times.expected_seconds() * (num_ahead + 1) / max(1, self._used_rows())
        left_seconds = deadline - time.monotonic()
        missing_seconds = _MARGIN * wait_seconds + self._times.expected_seconds(max_tokens) - left_seconds
        if wait_seconds > 0 and missing_seconds > 0:
            raise OverloadedError(
                f"{len(ahead)} requests wait before this one, which would begin in about {wait_seconds:.2g} s; that is "
                f"too late for its deadline in {max(0.0, left_seconds):.2g} s",
                min(max(missing_seconds, _LEAST_RETRY_SECONDS), _MOST_RETRY_SECONDS),
            )

    def _is_late(self, answer: Answer) -> bool:
        """Whether a request's time is up, or it would only take the time of others that wait."""
        request, now = answer.request, time.monotonic()
        if request.deadline is None:
            return False
        has_begun = any(generation.output for generation in answer.generations)
        if has_begun or len(self._answers) == 1:
            return now >= request.deadline
        return now + self._times.expected_seconds(request.least_tokens) > request.deadline

    def _oldest(self) -> Answer:
        return min(self._answers, key=lambda each: each.request.number)


def order(answer: Answer) -> tuple[int, int]:
    """Which request comes first: the one of higher priority, then the one that arrived first."""
    return -answer.request.priority, answer.request.number
