"""Runs a GPU service and a CPU expert service as one: two child processes, started and stopped together."""

from pair._processes import Pair, PairError, free_port

__all__ = ["Pair", "PairError", "free_port"]
