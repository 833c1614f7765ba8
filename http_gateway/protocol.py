"""One connection: what uvicorn leaves open, which is how large a head may be, how long it may take, and its errors."""

from typing import Final

from pydantic_core import to_json
from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from http_gateway.errors import ApiError

MAX_HEAD_BYTES: Final = 64 * 1024
"""As much as other servers take, and more than any client sends: keys, cookies and traces take a few KiB."""
_TOO_LARGE = f"the request line and the headers are larger than the limit of {MAX_HEAD_BYTES} bytes"
_REASONS = {400: b"Bad Request", 431: b"Request Header Fields Too Large"}


class Protocol(HttpToolsProtocol):
    """Bounds the memory and the time that a caller takes before it has asked for anything.

    uvicorn keeps headers, and what follows a body in chunks, without a bound, and waits for a first request for ever.
    """

    _advanced = False
    _waiting_bytes = 0

    @override
    def connection_made(self, transport) -> None:  # type: ignore[no-untyped-def] # as uvicorn types it
        super().connection_made(transport)
        self._close_unless_it_goes_on()

    @override
    def data_received(self, data: bytes) -> None:
        self._advanced = False
        super().data_received(data)
        if self.transport.is_closing():
            return
        self._waiting_bytes = 0 if self._advanced else self._waiting_bytes + len(data)
        if self._waiting_bytes > MAX_HEAD_BYTES:
            self._refuse(ApiError(431, _TOO_LARGE))
        elif self._is_idle():
            self._close_unless_it_goes_on()

    @override
    def on_headers_complete(self) -> None:
        self._advanced = True
        super().on_headers_complete()

    @override
    def on_body(self, body: bytes) -> None:
        self._advanced = True
        super().on_body(body)

    @override
    def on_message_complete(self) -> None:
        self._advanced = True
        super().on_message_complete()

    @override
    def send_400_response(self, msg: str) -> None:
        """What came is not HTTP."""
        self._refuse(ApiError(400, "the request is not valid HTTP"))

    def _is_idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _close_unless_it_goes_on(self) -> None:
        """Uvicorn stops this clock at the next bytes."""
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _refuse(self, error: ApiError) -> None:
        """Answers, unless another answer is on its way, and closes the connection."""
        if self._is_idle():
            body = to_json(error.content)
            head = (
                b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
            )
            self.transport.write(head % (error.status, _REASONS[error.status], len(body)) + body)
        self.transport.close()
