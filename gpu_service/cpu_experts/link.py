"""Whether the CPU expert service may be used, and on which stream: keeps a connection, and replaces it when it is lost.

A connection that breaks is given up at once, because layers can be computed without the service. A background thread
reconnects, and checks the service while nothing is sent.
"""

import random
import threading
import time
from collections.abc import Callable

import torch

from fiddler.v1 import experts_pb2
from gpu_service.cpu_experts.connection import NOT_READY, Connection, Stream
from gpu_service.errors import ExpertServiceError, HandshakeError

_CONNECT_SECONDS = 1.0
"""How long one attempt to connect may take."""
_LOOK_AFTER_SECONDS = 2.0
"""How long after the last answer the service is checked."""
_LOOK_SECONDS = 2.0
"""How long the check may take before the service counts as lost. Longer than an attempt, because it may be busy."""
_FIRST_BACKOFF_SECONDS = 0.05
"""The delay before the first attempt to reconnect; it doubles with each attempt."""
_MAX_BACKOFF_SECONDS = 1.0
_STEADY_SECONDS = 10.0
"""A connection that lasted so long resets the delay. One that is lost sooner does not, so that a service that accepts
connections and answers nothing is not called without pause."""

OnChange = Callable[[ExpertServiceError | None], None]
"""Called with why the service may not be used; None if it may."""


class ExpertLink:
    """One service's connection and stream. For any thread."""

    def __init__(
        self,
        address: str,
        dtype: torch.dtype,
        *,
        max_message_bytes: int,
        on_change: OnChange,
        weight_format: str = "",
    ) -> None:
        """Does not connect yet.

        Args:
            address: HOST:PORT or unix:PATH.
            dtype: The dtype of hidden rows, both ways.
            max_message_bytes: The largest message, both ways.
            weight_format: See Connection.
            on_change: Called with `error` whenever that changes, by any thread. The calls come one after another, in
                the order of the changes. It must return at once and call nothing of this object.
        """
        self._address = address
        self._dtype = dtype
        self._weight_format = weight_format
        self._max_message_bytes = max_message_bytes
        self._on_change = on_change
        self._fingerprint = ""
        self._lock = threading.Lock()  # guards what follows
        self._error: ExpertServiceError | None = ExpertServiceError(
            f"{address}: the CPU expert service has not been reached yet"
        )
        self._connection: Connection | None = None
        self._stream: Stream | None = None
        self._found_at = self._lost_at = self._heard_at = 0.0  # time.monotonic()
        self._closed = threading.Event()
        self._lost = threading.Event()

    @property
    def error(self) -> ExpertServiceError | None:
        """Why the service may not be used; None if it may."""
        return self._error

    def connect(self, fingerprint: str, timeout_seconds: float) -> experts_pb2.DescribeResponse:
        """Tries once to connect; ExpertClient.connect documents it."""
        connection = Connection(self._address, self._dtype, self._max_message_bytes, weight_format=self._weight_format)
        try:
            description = connection.shake_hands(fingerprint, timeout_seconds)
            self._use(connection, connection.open_stream(), fingerprint)
        except ExpertServiceError:
            connection.close()
            raise
        return description

    def stream(self) -> Stream:
        """Returns the stream to send on.

        Raises:
            ExpertServiceError: The service is lost.
        """
        with self._lock:
            if self._stream is None or self._error is not None:
                raise ExpertServiceError(str(self._error))
            return self._stream

    def renew(self, broken: Stream, timeout_seconds: float) -> Stream:
        """Replaces a broken stream, if the service answers in time.

        Raises:
            HandshakeError: The service that answers serves something else.
            ExpertServiceError: It does not answer in time, or was lost meanwhile.
        """
        broken.close()
        with self._lock:
            connection = self._connection
        if connection is None:
            raise self._closed_error()
        # another process may answer at the address by now
        connection.shake_hands(self._fingerprint, timeout_seconds)
        fresh = connection.open_stream()
        with self._lock:
            if self._stream is broken and self._error is None:
                self._stream = fresh
                return fresh
        fresh.close()
        raise ExpertServiceError(str(self._error))

    def heard(self) -> None:
        """Notes the time of an answer."""
        self._heard_at = time.monotonic()

    def lose(self, stream: Stream, error: ExpertServiceError) -> None:
        """Ends a stream for good. If it is the one in use, the service counts as lost until it is reached again."""
        with self._lock:
            stream.failure = stream.failure or error
            stream.close()
            if stream is self._stream and self._error is None:
                self._error = error
                self._lost_at = time.monotonic()
                self._lost.set()
                self._on_change(error)

    def abort(self) -> None:
        """Ends the stream and opens no other. `on_change` is not called."""
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
        """Checks the connection while it is quiet, and replaces it when it is lost."""
        backoff_seconds = _FIRST_BACKOFF_SECONDS
        while not self._closed.is_set():
            if not self._lost.wait(_LOOK_AFTER_SECONDS):
                self._look()
                continue
            if self._lost_at - self._found_at > _STEADY_SECONDS:
                backoff_seconds = _FIRST_BACKOFF_SECONDS
            backoff_seconds = self._find(backoff_seconds)

    def _find(self, backoff_seconds: float) -> float:
        """Reconnects, in as many attempts as it takes. Returns the delay to start with if it is lost again soon."""
        # at random, so that several clients of one service do not reconnect at the same moment
        while not self._closed.wait(backoff_seconds * random.uniform(0.5, 1)):
            backoff_seconds = min(2 * backoff_seconds, _MAX_BACKOFF_SECONDS)
            try:
                self.connect(self._fingerprint, _CONNECT_SECONDS)
                break
            except HandshakeError as error:
                self._refuse(error)
            except ExpertServiceError:
                continue  # it is not up yet
        return backoff_seconds

    def _look(self) -> None:
        """Checks a service that has not answered for a while: whether it is ready, and the same process as before."""
        with self._lock:
            connection, stream = self._connection, self._stream
        if connection is None or stream is None or not self._is_quiet():
            return
        try:
            # any process at the address answers the health check; that it is the one that shook hands, the stream shows
            serving = not stream.has_ended and connection.is_serving(_LOOK_SECONDS)
        except ExpertServiceError:  # the connection was closed meanwhile
            return
        if not serving and self._is_quiet():
            self.lose(stream, ExpertServiceError(f"{self._address}: {NOT_READY}"))

    def _is_quiet(self) -> bool:
        return time.monotonic() - self._heard_at >= _LOOK_AFTER_SECONDS

    def _refuse(self, error: HandshakeError) -> None:
        """Reports a service that came back with another checkpoint or dtype, once for each difference."""
        with self._lock:
            if not self._closed.is_set() and str(error) != str(self._error):
                self._error = error
                self._on_change(error)

    def _closed_error(self) -> ExpertServiceError:
        return ExpertServiceError(f"{self._address}: the client is closed")
