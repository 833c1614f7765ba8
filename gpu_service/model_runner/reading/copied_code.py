"""Which of a model's code is a copy of another model's: transformers' files repeat it word for word."""

import inspect
from collections.abc import Callable
from typing import Any


def is_copy(function: Callable[..., Any] | None, other: Callable[..., Any]) -> bool:
    """Whether a function does what another one does, since both have the same code.

    Args:
        function: Of a model. None, or what is no Python function, is no copy.
        other: Of another model.
    """
    one, same = (getattr(inspect.unwrap(each), "__code__", None) if each else None for each in (function, other))
    if one is None or same is None:
        return False
    return (one.co_code, one.co_names, one.co_consts) == (same.co_code, same.co_names, same.co_consts)
