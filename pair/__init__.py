"""Runs a GPU service and a CPU expert service as a pair: two child processes, started and stopped together."""

from pair._processes import Pair, PairError, free_port

__all__ = ["Pair", "PairError", "free_port"]
