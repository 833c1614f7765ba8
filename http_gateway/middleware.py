"""What is done around every request: bounds on the body, headers for browsers, and counting."""

import time
from collections.abc import Awaitable

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from http_gateway import metrics
from http_gateway.errors import ApiError

_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Swagger's page starts itself with a script of its own.
_DOCS_POLICY = _PAGE_POLICY.replace("script-src 'self'", "script-src 'self' 'unsafe-inline'").replace(
    "style-src 'self'", "style-src 'self' 'unsafe-inline'"
)
_OTHER = "other"


class BodyLimit:
    """Refuses a body that is too large, or is not JSON by its type.

    The type matters: a page of another origin may send a form or plain text without asking, but not JSON.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        """Wraps an application."""
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the application, or answers with the error."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if error := self._problem(headers):
            await error.response()(scope, receive, send)
            return
        num_bytes = 0

        async def counting() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                raise HTTPException(413, self._too_large)
            return message

        await self._app(scope, counting, send)

    def _problem(self, headers: Headers) -> ApiError | None:
        length = headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length[:19]) > self._max_bytes:
            return ApiError(413, self._too_large)
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
            return ApiError(415, f"the Content-Type must be application/json, got {kind or 'none'!r}")
        if (encoding := headers.get("content-encoding", "").strip().lower()) not in ("", "identity"):
            return ApiError(415, f"Content-Encoding: a compressed body is not taken, got {encoding[:255]!r}")
        return None

    @property
    def _too_large(self) -> str:
        return f"the body is larger than the limit of {self._max_bytes} bytes"


class HeadAsGet:
    """Answers HEAD as GET without the body, which the server leaves out. Health checks and proxies ask so."""

    def __init__(self, app: ASGIApp) -> None:
        """Wraps an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the application."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self._app(scope, receive, send)
        as_get = {**scope, "method": "GET"}  # the server looks at its own
        try:
            return await self._app(as_get, receive, send)
        finally:
            scope.update({key: value for key, value in as_get.items() if key not in scope})  # the route, for metrics


class BrowserHeaders:
    """Tells browsers to load nothing from elsewhere, and to guess no types."""

    def __init__(self, app: ASGIApp) -> None:
        """Wraps an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        policy = _DOCS_POLICY if scope["path"] == "/docs" else _PAGE_POLICY

        def with_headers(message: Message) -> Awaitable[None]:  # not asynchronous: every event comes by here
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-content-type-options"] = "nosniff"
                headers["content-security-policy"] = policy
                headers["referrer-policy"] = "no-referrer"
            return send(message)

        await self._app(scope, receive, with_headers)


class Counting:
    """Counts requests and their duration by endpoint and status."""

    def __init__(self, app: ASGIApp) -> None:
        """Wraps an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, began = 500, time.perf_counter()

        def noting(message: Message) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            return send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            endpoint = getattr(scope.get("route"), "path", _OTHER)  # a bounded number, unlike the paths
            metrics.REQUESTS.labels(endpoint, str(status)).inc()
            metrics.REQUEST_SECONDS.labels(endpoint).observe(time.perf_counter() - began)
