"""Measures the time to the first token of a stream."""

import time

from fiddler.v1 import generation_pb2
from http_gateway import metrics


class FirstToken:
    """Counts once, when the first chunk of a stream is sent."""

    def __init__(self, endpoint: str) -> None:
        """Starts the clock."""
        self._endpoint = endpoint
        self._began_seconds: float | None = time.perf_counter()

    def seen(self, response: generation_pb2.GenerateResponse) -> None:
        """Takes a message that is sent."""
        if self._began_seconds is not None and response.HasField("chunk"):
            seconds = time.perf_counter() - self._began_seconds
            metrics.TIME_TO_FIRST_TOKEN.labels(self._endpoint).observe(seconds)
            self._began_seconds = None
