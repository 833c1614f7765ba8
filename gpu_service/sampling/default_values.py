"""Values of a generation_config.json that no request may have: what they mean, or that they are left out."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog
from transformers import GenerationConfig

_log = structlog.get_logger(__name__)

_MOST_TOP_K: Final = 2**31 - 1
_SMALLEST_TOP_P: Final = sys.float_info.min
"""Leaves the likeliest token alone, as transformers' top_p of 0 does."""


def _temperature(value: float) -> float | None:
    return min(value, 1e6) if value >= 0 else None


def _top_k(value: float) -> float | None:
    return int(min(value, _MOST_TOP_K)) if value >= 0 else 0  # -1 means all to many programs


def _top_p(value: float) -> float | None:
    return None if value < 0 else max(_SMALLEST_TOP_P, min(value, 1.0))


def _min_p(value: float) -> float | None:
    return value if 0 <= value <= 1 else None


def _typical_p(value: float) -> float | None:
    return min(value, 1.0) if value > 0 else None


def _repetition_penalty(value: float) -> float | None:
    return min(max(value, 0.001), 1000.0) if value > 0 else None


_MEANINGS: Final[dict[str, Callable[[float], float | None]]] = {
    "temperature": _temperature,
    "top_k": _top_k,
    "top_p": _top_p,
    "min_p": _min_p,
    "typical_p": _typical_p,
    "repetition_penalty": _repetition_penalty,
}
"""From a number to the one that a request would have for it; None if it means nothing, as to transformers."""


def replace_unusual(path: Path, defaults: GenerationConfig) -> None:
    """Replaces numbers that no request may have by what they mean, and removes those that mean nothing.

    The log names both.

    Args:
        path: The generation_config.json, for the log.
        defaults: Its settings, which are changed.

    Raises:
        ValueError: A setting is not a number. The text names it.
    """
    if not isinstance(defaults.do_sample, bool | None):
        raise ValueError(f"do_sample: must be true or false, got {defaults.do_sample!r}")
    for name, meaning in _MEANINGS.items():
        value = getattr(defaults, name)
        if value is None or (not defaults.do_sample and name != "repetition_penalty"):
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name}: must be a number, got {value!r}")
        meant = None if value != value else meaning(value)  # NaN differs from itself
        if meant is None:
            _log.warning("generation setting left out", file=str(path), setting=name, value=value)
        elif meant != value:
            _log.warning("generation setting taken for another value", file=str(path), setting=name, value=value,
                         taken_for=meant)  # fmt: skip
        setattr(defaults, name, meant)
