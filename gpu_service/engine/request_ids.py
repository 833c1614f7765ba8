"""Which ids the requests under way have, so that another call can end one. Any thread may ask."""

import threading

from gpu_service.engine.request import Request
from gpu_service.errors import DuplicateIdError


class RequestIds:
    """Requests by id. A request ends in one of two ways, and whoever comes first says in which."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: dict[str, Request] = {}

    def add(self, request: Request) -> None:
        """Remembers a request, unless it has no id.

        Raises:
            DuplicateIdError: Its id is another one's.
        """
        with self._lock:
            if request.request_id in self._requests:
                raise DuplicateIdError(f"a request named {request.request_id!r} is under way")
            if request.request_id:
                self._requests[request.request_id] = request

    def abort(self, request_id: str) -> Request | None:
        """The request of that id, which can only end as cancelled from now on; None where there is none."""
        with self._lock:
            return self._requests.pop(request_id, None)

    def end(self, request: Request) -> bool:
        """Forgets a request. Returns False where it was aborted before."""
        with self._lock:
            if not request.request_id:
                return True
            if self._requests.get(request.request_id) is not request:
                return False  # another one may have its id since
            del self._requests[request.request_id]
            return True
