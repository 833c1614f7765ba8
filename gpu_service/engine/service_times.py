"""How long requests take to be computed, as the latest ones did. Imports no torch."""

_WEIGHT = 0.1  # of the latest request


class ServiceTimes:
    """Means over the latest requests. One thread adds to them; any thread may read."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._seconds = 0.0
        self._tokens = 0.0

    def add(self, seconds: float, num_tokens: int) -> None:
        """Counts a request that has ended, after a time in its KV rows and with so many tokens in one of them."""
        weight = _WEIGHT if self._seconds else 1.0
        self._seconds += weight * (seconds - self._seconds)
        self._tokens += weight * (num_tokens - self._tokens)

    def expected_seconds(self, max_tokens: int | None = None) -> float:
        """How long a request is likely to take; 0 if nothing is known. One for fewer tokens than the mean is faster.

        Args:
            max_tokens: The most tokens that it generates; None if that is not known.
        """
        if max_tokens is None or max_tokens >= self._tokens:
            return self._seconds
        return self._seconds * max_tokens / self._tokens
