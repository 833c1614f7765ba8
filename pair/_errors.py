"""The error of a pair."""


class PairError(Exception):
    """A service ended unexpectedly, or was not ready in time."""
