"""Starts a module of this project as a program of its own."""

import sys
from pathlib import Path
from typing import Final

_ROOT: Final = Path(__file__).parents[2]
"""Where this project's packages are."""


def command_of(module: str, *arguments: str) -> list[str]:
    """`python -m MODULE ARGUMENTS`, for the Python that runs this.

    `python -m` looks for modules in the current directory first. There, a newcomer may have a directory `client` or a
    file `queue.py`, which must not take the place of this project's or of Python's. In a clone, the current directory
    is where the packages are, so it stays in the search.
    """
    return [sys.executable, *([] if _is_in_clone() else ["-P"]), "-m", module, *arguments]


def _is_in_clone() -> bool:
    try:
        return Path.cwd() == _ROOT
    except FileNotFoundError:  # someone removed the current directory
        return False
