"""Whether the CPU expert service may be used, and over which stream: a connection that is lost and found again.

What breaks is lost at once, since the layers can be computed without the service. A thread in the background finds it
again, and looks whether it is still there while nothing is sent.
"""

import random
import threading
import time
from collections.abc import Callable

import torch

from fiddler.v1 import experts_pb2
from gpu_service.cpu_experts.connection import NOT_READY, Connection, Stream
from gpu_service.errors import ExpertServiceError, HandshakeError

_CONNECT_SECONDS = 1.0  # for one attempt
_LOOK_AFTER_SECONDS = 2.0  # without an answer
_LOOK_SECONDS = 2.0  # until a service that does not answer is lost; more than above, since it may be busy
_FIRST_BACKOFF_SECONDS = 0.05
_MAX_BACKOFF_SECONDS = 1.0
_STEADY_SECONDS = 10.0  # what is lost sooner is waited for longer, so that a service that answers nobody is left alone

OnChange = Callable[[ExpertServiceError | None], None]


class ExpertLink:
    """One service's connection and stream. For any thread."""

    def __init__(self, address: str, dtype: torch.dtype, max_message_bytes: int, on_change: OnChange) -> None:
        """Connects to nobody yet.

        Args:
            address: HOST:PORT or unix:PATH.
            dtype: What hidden rows are sent and expected in.
            max_message_bytes: The largest message either way.
            on_change: Called whenever `error` changes, with it, by any thread. It returns at once and calls nothing
                here: the calls come one after another, in the order of the changes.
        """
        self._address = address
        self._dtype = dtype
        self._max_message_bytes = max_message_bytes
        self._on_change = on_change
        self._fingerprint = ""
        self._lock = threading.Lock()  # guards what follows
        self._error: ExpertServiceError | None = ExpertServiceError(
            f"{address}: the CPU expert service was not found yet"
        )
        self._connection: Connection | None = None
        self._stream: Stream | None = None
        self._found_at = self._lost_at = self._heard_at = 0.0  # time.monotonic()
        self._closed = threading.Event()
        self._lost = threading.Event()

    @property
    def error(self) -> ExpertServiceError | None:
        """Why the service may not be used; None where it may."""
        return self._error

    def connect(self, fingerprint: str, timeout_seconds: float) -> experts_pb2.DescribeResponse:
        """Tries once to reach a service that is ready and serves the same: see ExpertClient."""
        connection = Connection(self._address, self._dtype, self._max_message_bytes)
        try:
            description = connection.shake_hands(fingerprint, timeout_seconds)
            self._use(connection, connection.open_stream(), fingerprint)
        except ExpertServiceError:
            connection.close()
            raise
        return description

    def stream(self) -> Stream:
        """The stream to send on.

        Raises:
            ExpertServiceError: The service is lost.
        """
        with self._lock:
            if self._stream is None or self._error is not None:
                raise ExpertServiceError(str(self._error))
            return self._stream

    def renew(self, broken: Stream, timeout_seconds: float) -> Stream:
        """A stream in place of one that broke, where the service shows in time that it is still there.

        Raises:
            ExpertServiceError: It does not, or is lost already.
        """
        broken.close()
        with self._lock:
            connection = self._connection
        if connection is None:
            raise self._closed_error()
        # Whoever answers now need not be who did before.
        connection.shake_hands(self._fingerprint, timeout_seconds)
        fresh = connection.open_stream()
        with self._lock:
            if self._stream is broken and self._error is None:
                self._stream = fresh
                return fresh
        fresh.close()
        raise ExpertServiceError(str(self._error))

    def heard(self) -> None:
        """Notes that an answer came."""
        self._heard_at = time.monotonic()

    def lose(self, stream: Stream, error: ExpertServiceError) -> None:
        """Ends a stream for good and, where it is the one in use, uses the service no more until it is found again."""
        with self._lock:
            stream.failure = stream.failure or error
            stream.close()
            if stream is self._stream and self._error is None:
                self._error = error
                self._lost_at = time.monotonic()
                self._lost.set()
                self._on_change(error)

    def abort(self) -> None:
        """Ends the stream, and makes no other; nobody is told of it as a change."""
        with self._lock:
            self._closed.set()
            self._lost.set()
            self._error = self._closed_error()
            if self._stream is not None:
                self._stream.failure = self._stream.failure or self._error
                self._stream.close()

    def close(self) -> None:
        """Ends the stream and the connection."""
        self.abort()
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _use(self, connection: Connection, stream: Stream, fingerprint: str) -> None:
        with self._lock:
            if self._closed.is_set():
                raise self._closed_error()
            former, self._connection, self._stream = self._connection, connection, stream
            if former is None:
                self._fingerprint = fingerprint
                threading.Thread(target=self._keep, name="expert link", daemon=True).start()
            self._found_at = self._heard_at = time.monotonic()
            self._lost.clear()
            self._error = None
            self._on_change(None)
        if former is not None:
            former.close()

    def _keep(self) -> None:
        """Looks after the connection, and for another once it is lost."""
        backoff_seconds = _FIRST_BACKOFF_SECONDS
        while not self._closed.is_set():
            if not self._lost.wait(_LOOK_AFTER_SECONDS):
                self._look()
                continue
            if self._lost_at - self._found_at > _STEADY_SECONDS:
                backoff_seconds = _FIRST_BACKOFF_SECONDS
            backoff_seconds = self._find(backoff_seconds)

    def _find(self, backoff_seconds: float) -> float:
        """Tries until there is a connection. Returns how long to wait first should it be lost again soon."""
        # at random, so that several that lost one service do not come back to it at the same moment
        while not self._closed.wait(backoff_seconds * random.uniform(0.5, 1)):
            backoff_seconds = min(2 * backoff_seconds, _MAX_BACKOFF_SECONDS)
            try:
                self.connect(self._fingerprint, _CONNECT_SECONDS)
                break
            except HandshakeError as error:
                self._refuse(error)
            except ExpertServiceError:
                continue  # it is not there yet
        return backoff_seconds

    def _look(self) -> None:
        """Asks a service that nothing was heard of for a while whether it is there, and still the same."""
        with self._lock:
            connection, stream = self._connection, self._stream
        if connection is None or stream is None or not self._is_quiet():
            return
        try:
            # Health is answered by whoever is at the address now; only the stream tells that it is who shook hands.
            serving = not stream.has_ended and connection.is_serving(_LOOK_SECONDS)
        except ExpertServiceError:  # closed meanwhile
            return
        if not serving and self._is_quiet():
            self.lose(stream, ExpertServiceError(f"{self._address}: {NOT_READY}"))

    def _is_quiet(self) -> bool:
        return time.monotonic() - self._heard_at >= _LOOK_AFTER_SECONDS

    def _refuse(self, error: HandshakeError) -> None:
        """Tells of a service that came back as another, once for each way that it differs."""
        with self._lock:
            if not self._closed.is_set() and str(error) != str(self._error):
                self._error = error
                self._on_change(error)

    def _closed_error(self) -> ExpertServiceError:
        return ExpertServiceError(f"{self._address}: the client is closed")
