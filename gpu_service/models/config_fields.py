"""Checks the fields of a config.json whose model code is ours, where nobody else would. It knows no family."""

from collections.abc import Iterable, Mapping
from typing import Any

Settings = Mapping[str, Any]


class FieldError(ValueError):
    """A field is missing or wrong. The text begins with its name."""


def require_counts(settings: Settings, names: Iterable[str]) -> None:
    """Each must be there, and be a whole number of at least 1.

    Raises:
        FieldError: One is not.
    """
    for name in names:
        require_present(settings, (name,))
        _check_whole_number(settings, name, 1)


def require_present(settings: Settings, names: Iterable[str]) -> None:
    """Each must be there.

    Raises:
        FieldError: One is not.
    """
    for name in names:
        if name not in settings:
            raise FieldError(f"{name}: is missing")


def allow_counts(settings: Settings, names: Iterable[str], least: int = 1) -> None:
    """Each, where it is there and not null, must be a whole number of at least `least`.

    Raises:
        FieldError: One is not.
    """
    for name in names:
        if settings.get(name) is not None:
            _check_whole_number(settings, name, least)


def require_one_of(settings: Settings, name: str, values: Iterable[Any], default: Any) -> None:
    """A setting must be one of these; `default` is what it is where it is not there.

    Raises:
        FieldError: It is something else.
    """
    allowed = list(values)
    value = settings.get(name, default)
    if not any(type(value) is type(other) and value == other for other in allowed):
        raise FieldError(f"{name}: must be {' or '.join(map(repr, allowed))}, got {value!r}")


def require_number(settings: Settings, name: str, least: float, default: float) -> None:
    """A setting must be a number of at least `least`; `default` is what it is where it is not there.

    Raises:
        FieldError: It is something else.
    """
    value = settings.get(name, default)
    if type(value) not in (int, float) or not value >= least:
        raise FieldError(f"{name}: must be a number of at least {least:g}, got {value!r}")


def require_at_most(settings: Settings, name: str, other: str) -> None:
    """One whole number must not be above another.

    Raises:
        FieldError: It is.
    """
    if settings[name] > settings[other]:
        raise FieldError(f"{name}: must be at most {other}, which is {settings[other]}, got {settings[name]}")


def require_divisor(settings: Settings, name: str, other: str) -> None:
    """One whole number, where it is there and not null, must divide another.

    Raises:
        FieldError: It does not.
    """
    value = settings.get(name)
    if value is not None and settings[other] % value:
        raise FieldError(f"{name}: must divide {other}, which is {settings[other]}, got {value}")


def _check_whole_number(settings: Settings, name: str, least: int) -> None:
    value = settings[name]
    if type(value) is not int or value < least:
        raise FieldError(f"{name}: must be a whole number of at least {least}, got {value!r}")
