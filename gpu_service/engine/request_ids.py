"""The ids of requests under way, so that another call can end one of them. For any thread."""

import threading

from gpu_service.engine.request import Request
from gpu_service.errors import DuplicateIdError


class RequestIds:
    """Requests by id. A request is either aborted or ends by itself; the first of the two decides how it ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: dict[str, Request] = {}

    def add(self, request: Request) -> None:
        """Remembers a request, unless it has no id.

        Raises:
            DuplicateIdError: Another request has its id.
        """
        with self._lock:
            if request.request_id in self._requests:
                raise DuplicateIdError(f"a request named {request.request_id!r} is under way")
            if request.request_id:
                self._requests[request.request_id] = request

    def abort(self, request_id: str) -> Request | None:
        """The request of that id, which can only end as cancelled from now on; None if there is none."""
        with self._lock:
            return self._requests.pop(request_id, None)

    def end(self, request: Request) -> bool:
        """Forgets a request. Returns False if it was aborted before."""
        with self._lock:
            if not request.request_id:
                return True
            if self._requests.get(request.request_id) is not request:
                return False  # the id may be another request's by now
            del self._requests[request.request_id]
            return True
