"""Runs a GPU service and a CPU expert service as a pair: two child processes, started and stopped together."""

from typing import TYPE_CHECKING

from pair._errors import PairError

if TYPE_CHECKING:
    from pair._models import obtain_model, print_dry_run
    from pair._processes import Pair

__all__ = ["Pair", "PairError", "obtain_model", "print_dry_run"]

# `python -m pair` imports this first, and only then sees to Ctrl-C, so what takes long is imported when first used.
_LAZY = {
    "Pair": "pair._processes",
    "obtain_model": "pair._models",
    "print_dry_run": "pair._models",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
