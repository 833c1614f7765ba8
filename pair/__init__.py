"""Runs a GPU service and a CPU expert service as a pair: two child processes, started and stopped together."""

from pair._errors import PairError
from pair._models import obtain_model, print_dry_run
from pair._processes import Pair

__all__ = ["Pair", "PairError", "obtain_model", "print_dry_run"]
